;; Writes lines of 1 KiB to its standard output for ever, 32 of them at a time.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "\00\00\01\00\00\80\00\00")
  (func (export "_start")
    (local $at i32)
    (memory.fill (i32.const 65536) (i32.const 120) (i32.const 32768))
    (loop $line
      (i32.store8 (i32.add (i32.const 66559) (i32.shl (local.get $at) (i32.const 10))) (i32.const 10))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $line (i32.lt_u (local.get $at) (i32.const 32))))
    (loop $again
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br $again))))
