// A program in JavaScript: arguments, environment, a file on a mount, standard input, and a code of its own.
import { getArguments, getEnvironment } from 'wasi:cli/environment@0.2.10';
import { exitWithCode } from 'wasi:cli/exit@0.2.10';
import { getStdin } from 'wasi:cli/stdin@0.2.10';
import { getDirectories } from 'wasi:filesystem/preopens@0.2.10';

function* lines(stream) {
  let text = '';
  for (;;) {
    try {
      text += new TextDecoder().decode(stream.blockingRead(1024n));
    } catch (end) {
      return;
    }
    const whole = text.split('\n');
    text = whole.pop();
    yield* whole;
  }
}

export const run = {
  run() {
    const [, mount] = getArguments();
    console.log(mount, new Map(getEnvironment()).get('NAME'));
    const [directory] = getDirectories().find(([, path]) => path === mount);
    const file = directory.openAt({}, 'from-js', { create: true, truncate: true }, { read: true, write: true });
    file.write(new TextEncoder().encode('text'), 0n);
    const [bytes] = file.read(64n, 0n);
    console.log(new TextDecoder().decode(bytes));
    for (const line of lines(getStdin())) console.log(line.toUpperCase());
    exitWithCode(7);
  },
};
