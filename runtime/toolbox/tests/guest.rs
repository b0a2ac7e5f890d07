//! The toolbox's own sources, compiled natively: its unit tests, and scripts with what they must say.
#![allow(missing_docs, unreachable_pub, dead_code, unused_imports, clippy::unwrap_used, clippy::pedantic)]

#[path = "../guest/src/applets/mod.rs"]
pub mod applets;
#[path = "../guest/src/files.rs"]
pub mod files;
#[path = "../guest/src/io.rs"]
pub mod io;
#[path = "../guest/src/platform/mod.rs"]
pub mod platform;
#[path = "../guest/src/shell/mod.rs"]
pub mod shell;

use applets::Cx;
use io::{Input, Output};
use std::collections::BTreeMap;
use std::path::Path;

/// Runs a program in `dir`; gives its code, output, and complaints.
fn run(dir: &Path, name: &str, args: &[&str], input: &[u8]) -> (i32, String, String) {
    let ((stdout, out), (stderr, err)) = (Output::kept(), Output::kept());
    let env = [("HOME", "/home"), ("WHO", "me")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut cx = Cx {
        stdin: Input::bytes(input.to_vec()),
        stdout,
        stderr,
        dir: dir.display().to_string(),
        env: BTreeMap::from(env),
    };
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let code = applets::run(&mut cx, name, &args);
    let text = |bytes: &std::cell::RefCell<Vec<u8>>| String::from_utf8_lossy(&bytes.borrow()).into_owned();
    (code, text(&out), text(&err))
}

/// Script, code, output.
const SCRIPTS: &[(&str, i32, &str)] = &[
    // words
    ("echo a  'b  c' \"d $WHO\" \\$x", 0, "a b  c d me $x\n"),
    ("x='a b'; for w in $x \"$x\"; do echo [$w]; done", 0, "[a]\n[b]\n[a b]\n"),
    ("echo ${nope:-de fault} ${WHO:+yes} ${#WHO} ${WHO%e} ${WHO#m}", 0, "de fault yes 2 m e\n"),
    ("p=/a/b/c.txt; echo ${p##*/} ${p%/*} ${p%.txt}.md ${p#/*/}", 0, "c.txt /a/b /a/b/c.md b/c.txt\n"),
    ("echo \"${nope-\"in quotes\"}\" '$WHO' \"\\\"\"", 0, "in quotes $WHO \"\n"),
    ("echo ${x:=set}$x; echo ~ ~/x a~", 0, "setset\n/home /home/x a~\n"),
    ("IFS=:; x=a:b::c; set -- $x; echo $#; IFS=' '; echo \"$*\"", 0, "4\na b  c\n"),
    ("set -- 'a b' c; printf '[%s]' \"$@\"; printf '[%s]' $*; echo $#", 0, "[a b][c][a][b][c]2\n"),
    ("set --; for a in \"$@\"; do echo never; done; echo $#", 0, "0\n"),
    ("echo $((1 +)); echo never", 1, ""),
    ("x=5; echo $((x * (x + 1))) $((x > 3))", 0, "30 1\n"),
    ("echo `echo back \\`echo quoted\\`` $(echo one; echo two)", 0, "back quoted one two\n"),
    ("echo a#b # a comment\n#another\necho c", 0, "a#b\nc\n"),
    ("echo one\\\ntwo", 0, "onetwo\n"),
    // pipelines and lists
    ("printf 'b\\na\\nc\\n' | sort | head -n 2", 0, "a\nb\n"),
    ("false || echo or; true && echo and; ! false && echo not", 0, "or\nand\nnot\n"),
    ("true | false; echo $?; false | true; echo $?", 0, "1\n0\n"),
    ("echo x | while read -r l; do echo got $l; done", 0, "got x\n"),
    ("x=1; echo | x=2; (x=3); echo $x", 0, "1\n"),
    ("exit 42", 42, ""),
    ("(exit 7); echo $?; sh -c 'exit 9'; echo $?", 0, "7\n9\n"),
    ("nothing", 127, ""),
    ("nothing 2>/dev/null; echo $?", 0, "127\n"),
    // compounds
    ("if false; then echo a; elif true; then echo b; else echo c; fi", 0, "b\n"),
    ("i=0; while [ $i -lt 3 ]; do i=$((i+1)); [ $i = 2 ] && continue; echo $i; done", 0, "1\n3\n"),
    ("until true; do echo never; done; for i in 1 2 3; do [ $i = 2 ] && break; echo $i; done", 0, "1\n"),
    ("for i in 1 2; do for j in a b; do [ $j = b ] && continue 2; echo $i$j; done; done", 0, "1a\n2a\n"),
    ("case abc in x|y) echo 1;; a*) echo 2;; *) echo 3;; esac", 0, "2\n"),
    ("case \"*\" in \"*\") echo star;; esac; case x in (y) ;; esac; echo $?", 0, "star\n0\n"),
    ("f() { local x=in; echo $x $1 $#; return 3; }; x=out; f a b; echo $? $x", 0, "in a 2\n3 out\n"),
    ("f() { [ $1 = 0 ] || { echo $1; f $(($1 - 1)); }; }; f 3", 0, "3\n2\n1\n"),
    ("{ echo a; echo b; } | wc -l", 0, "2\n"),
    // set -e and its like
    ("set -e; false; echo never", 1, ""),
    ("set -e; if false; then :; fi; false || true; ! true; echo here", 0, "here\n"),
    ("set -e; f() { false; echo in; }; f || echo or; echo on", 0, "in\non\n"),
    ("set -u; echo $nope; echo never", 1, ""),
    ("trap 'echo bye' EXIT; echo hi; exit 4", 4, "hi\nbye\n"),
    // redirections
    ("echo a >f; echo b >>f; cat <f; wc -l <f", 0, "a\nb\n2\n"),
    ("ls nope 2>&1 >/dev/null | grep -c 'No such'", 0, "1\n"),
    ("cat <<END\n$WHO $(echo x) \\$y\nEND\necho after", 0, "me x $y\nafter\n"),
    ("cat <<'END' | tr a-z A-Z\n$WHO\nEND", 0, "$WHO\n"),
    ("if true; then cat <<-E\n\tin\n\tE\nfi", 0, "in\n"),
    ("{ echo out; echo err >&2; } >f 2>&1; sort f", 0, "err\nout\n"),
    ("exec >f; echo x", 0, ""),
    ("read a b <<E\none two three\nE\necho $b-$a", 0, "two three-one\n"),
    // files
    (
        "mkdir -p d/e; touch d/x.txt d/y.txt d/.h; cd d; echo *; echo *.txt; echo nope*; echo */",
        0,
        "e x.txt y.txt\nx.txt y.txt\nnope*\ne/\n",
    ),
    ("mkdir a; cd a; cd ..; cd - >/dev/null; basename $PWD", 0, "a\n"),
    ("mkdir d; echo 1 >d/a; cp -r d c; mv c/a c/b; ls c; rm -r d; ls", 0, "b\nc\n"),
    ("mkdir -p a/b; touch a/b/c; find . -type f; find a -name b -type d; find a -maxdepth 0", 0, "./a/b/c\na/b\na\n"),
    ("echo x >f; ln -s f l; readlink l; cat l; [ -L l ] && [ -f l ] && echo link", 0, "f\nx\nlink\n"),
    ("printf 'x=1\\ny=2\\n' >f; grep -n 'y' f; grep -c . f; grep -q z f; echo $?", 0, "2:y=2\n2\n1\n"),
    ("printf 'a b\\nc d\\n' | cut -d ' ' -f 2 | tr '\\n' ,; echo; seq 3 | xargs echo n", 0, "b,d,\nn 1 2 3\n"),
    ("printf '%s-%03d|%-4s|%x\\n' a 7 b 255", 0, "a-007|b   |ff\n"),
    ("printf '1\\n10\\n2\\n' | sort -n | tail -n 1; printf 'a\\na\\nb\\n' | uniq -c", 0, "10\n      2 a\n      1 b\n"),
    ("echo abcdef | head -c 3; echo abcdef | tail -c +4", 0, "abcdef\n"),
    ("env -i A=1 env; X=2 env | grep X; export Y=3; sh -c 'echo $Y'", 0, "A=1\nX=2\n3\n"),
    ("[ 1 -lt 2 -a b = b ] && [ ! -e nope ] && [ -n x ] && test 'a b' = \"a b\"; echo $?", 0, "0\n"),
    ("echo 'echo in $1' >s; sh s arg; . ./s; ./s two", 0, "in arg\nin\nin two\n"),
    ("eval 'x=1; echo $x'; command -v ls; type cd", 0, "1\nls\ncd is a shell builtin\n"),
    ("echo a | tee f; cat f; du -s nope 2>/dev/null || echo none", 0, "a\na\nnone\n"),
    (
        "printf abc >f; md5sum f; sha1sum <f | cut -c 1-8; sha256sum f | head -c 8; echo; sha512sum f | cut -c 1-8",
        0,
        "900150983cd24fb0d6963f7d28e17f72  f\na9993e36\nba7816bf\nddaf35a1\n",
    ),
    (
        "printf '%055d' 0 >a; printf '%064d' 0 >b; md5sum a b | cut -c 1-8; sha1sum a b | cut -c 1-8",
        0,
        "d7fe636b\n10eab600\n8fffd3df\n01144980\n",
    ),
    ("echo x >f; sha256sum f >s; sha256sum -c s; echo y >f; sha256sum -c s; echo $?", 0, "f: OK\nf: FAILED\n1\n"),
    (
        "printf 'any carnal pleas' | base64; printf 'YW55IGNhcm5hbCBwbGVhcw==' | base64 -d; seq 99 | base64 | head -n 1 | wc -c",
        0,
        "YW55IGNhcm5hbCBwbGVhcw==\nany carnal pleas77\n",
    ),
    (
        "printf 'a1\nb2\nc3\n' >f; sed 's/[0-9]/<&>/; 2d' f; sed -n '$p;2,3s/\\(.\\)\\(.\\)/\\2\\1/p' f; sed '/b/,$d' f",
        0,
        "a<1>\nc<3>\n2b\nc3\n3c\na1\n",
    ),
    (
        "printf 'aaa\nbbb\n' | sed -E 's/(a)+?/x/2; s|b|/|g; 1a after'; echo abc | sed 'y/abc/xyz/;s/Z/!/I'; seq 9 | sed 3q | tr '\n' ' '",
        0,
        "axa\nafter\n///\nxy!\n1 2 3 ",
    ),
    (
        "seq 3 >f; sed -i '2s/.*/two/' f; cat f; sed -i -e 1d -e '$c end' f; cat f; seq 5 | sed -n '2!{' || echo bad",
        0,
        "1\ntwo\n3\ntwo\nend\nbad\n",
    ),
    (
        "seq 3 | tac | tr '\n' ' '; echo abc | rev; which ls nope; whoami; A=1 printenv A nope; echo $?",
        0,
        "3 2 1 cba\n/bin/ls\nroot\n1\n1\n",
    ),
    (
        "echo hello >f; ln -s f l; stat -c '%n %s %F' f l; basename $(realpath l); realpath nope 2>/dev/null || echo none",
        0,
        "f 6 regular file\nl 1 symbolic link\nf\nnone\n",
    ),
    (
        "head -c 4 /dev/zero | base64; head -c 1000 /dev/urandom | wc -c; [ -e /dev/null ] && echo there >/dev/null; echo $?",
        0,
        "AAAAAA==\n1000\n0\n",
    ),
    // what is written is there when somebody looks
    ("{ echo a; cat f; echo b; } >f 2>&1; sort f; exec 2>g; nothing; grep -c found g", 0, "a\na\nb\n1\n"),
    (
        "i=0; while [ $i -lt 3 ]; do echo $i; i=$((i+1)); [ -s f ] && echo seen; done >f; cat f",
        0,
        "0\nseen\n1\nseen\n2\nseen\n",
    ),
    ("echo a >>f; echo b >>f; echo c | tee -a f >g; cat f g; seq 10000 >h; wc -c <h", 0, "a\nb\nc\nc\n48894\n"),
    (
        "echo x >/dev/full; echo $?; { echo y; echo z; } >/dev/full || echo full; seq 9999 >/dev/full || echo too",
        0,
        "1\nfull\ntoo\n",
    ),
    // commands that are pulled
    (
        "yes | head -n 2; yes a b | tr a-z A-Z | sed 's/B/&&/' | grep -v x | cut -d ' ' -f 2 | head -n 2",
        0,
        "y\ny\nBB\nBB\n",
    ),
    ("seq 9999999 | grep 5000 | head -n 2; cat /dev/zero | head -c 17000000 | wc -c", 0, "5000\n15000\n17000000\n"),
    (
        "seq 3 >f; tail -n 1 -f f | head -n 1; cat nope f 2>/dev/null | tail -n 1; seq 2 | cat - f | wc -l",
        0,
        "3\n3\n5\n",
    ),
    (
        "grep() { echo mine; }; echo x | grep y | cat; echo a | grep '[' 2>/dev/null | cat; echo $?",
        0,
        "mine\nmine\n0\n",
    ),
    (
        "set -- 3; x=1; seq $1 | sed -n \"$x p\" | cat; seq $((x=x+1)) | tail -n 1; seq 2 | head -c 2; echo",
        0,
        "1\n2\n1\n\n",
    ),
    // what cannot be
    ("sed 's/a' ; sed x; sed '1,s/a/b/'; echo $?", 0, "1\n"),
    ("sleep 1 &", 2, ""),
    ("if true; then", 2, ""),
    ("echo 'open", 2, ""),
    (")", 2, ""),
    ("f() { f; }; f; echo never", 1, ""),
];

#[test]
fn scripts_do_what_a_shell_does() {
    let mut wrong = Vec::new();
    for (script, code, expected) in SCRIPTS {
        let dir = tempfile::tempdir().unwrap();
        let (found, out, err) = run(dir.path(), "sh", &["-c", script], b"");
        if (found, out.as_str()) != (*code, *expected) {
            wrong.push(format!("{script}\n  expected {code} {expected:?}\n  found    {found} {out:?}\n  {err}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_script_comes_line_by_line_and_what_follows_a_command_is_its_input() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = run(dir.path(), "sh", &[], b"read x\nline\nif true\nthen echo $x\nfi\nexit 5\necho never\n");
    assert_eq!((code, out.as_str()), (5, "line\n"));
}

#[test]
fn tar_puts_in_and_takes_out_what_kubectl_cp_sends() {
    let dir = tempfile::tempdir().unwrap();
    let text = "mkdir -p a/b/deep; echo one >a/f; echo two >a/b/g; ln -s f a/l; tar cf - a";
    let ((stdout, out), (stderr, _)) = (Output::kept(), Output::kept());
    let path = dir.path().display().to_string();
    let mut cx = Cx { stdin: Input::bytes(Vec::new()), stdout, stderr, dir: path.clone(), env: BTreeMap::new() };
    assert_eq!(applets::run(&mut cx, "sh", &["-c".to_owned(), text.to_owned()]), 0);
    let archive = out.take();
    for args in [
        &["xmf", "-", "-C", "to"][..],
        &["--no-same-permissions", "--no-same-owner", "-xmf", "-", "-C", "to"],
        &["-x", "-C", "to"],
    ] {
        run(dir.path(), "sh", &["-c", "rm -rf to; mkdir to"], b"");
        let (code, _, err) = run(dir.path(), "tar", args, &archive);
        assert_eq!(code, 0, "{err}");
        let (_, found, _) = run(dir.path(), "sh", &["-c", "cd to; find .; cat a/f a/b/g a/l"], b"");
        assert_eq!(found, ".\n./a\n./a/b\n./a/b/deep\n./a/b/g\n./a/f\n./a/l\none\ntwo\none\n");
    }
    let (_, names, _) = run(dir.path(), "tar", &["tf", "-"], &archive);
    assert_eq!(names, "a/\na/b/\na/b/deep/\na/b/g\na/f\na/l\n");
    // From the root, names lose it; a member that leads out is left out.
    let whole = format!("tar cf x {path}/a/f; tar tf x");
    let (_, names, _) = run(dir.path(), "sh", &["-c", &whole], b"");
    assert_eq!(names, format!("{}/a/f\n", path.trim_start_matches('/')));
    let mut evil = Vec::new();
    let mut builder = tar::Builder::new(&mut evil);
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..7].copy_from_slice(b"../evil");
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, std::io::empty()).unwrap();
    drop(builder);
    let (code, _, err) = run(&dir.path().join("to"), "tar", &["xf", "-"], &evil);
    assert!(code == 2 && err.contains("leads out") && !dir.path().join("evil").exists(), "{code} {err}");
}

#[test]
fn a_pipeline_that_would_lose_something_fails() {
    let dir = tempfile::tempdir().unwrap();
    let endless = "while :; do printf '%0100000d' 1 || break; done";
    for (script, expected) in [(format!("{endless} | wc -c"), 1), (format!("x=$({endless}); exit $?"), 1)] {
        let (code, out, err) = run(dir.path(), "sh", &["-c", &script], b"");
        assert!(code == expected && err.contains("16 MiB") && out.is_empty(), "{script}: {code} {out}{err}");
    }
}

#[test]
fn the_list_of_applets_is_complete() {
    assert_eq!(applets::names(), dhow_toolbox::APPLETS);
}
