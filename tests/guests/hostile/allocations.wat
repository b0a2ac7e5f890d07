;; Takes memory and tables, a page and a thousand elements at a time, and goes on when it is refused.
(module
  (memory (export "memory") 1)
  (table $t 0 funcref)
  (func (export "_start")
    (local $at i32)
    (loop $again
      (if (i32.ge_s (local.tee $at (memory.grow (i32.const 1))) (i32.const 0))
        (then (i32.store (i32.shl (local.get $at) (i32.const 16)) (i32.const 1))))
      (drop (table.grow $t (ref.null func) (i32.const 1000)))
      (br $again))))
