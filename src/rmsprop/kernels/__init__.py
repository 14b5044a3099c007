"""The update made fast: what every kernel promises.

A kernel takes *groups*: tensors that share one `Rule`. One call makes the whole step, for all groups.

* The arithmetic is `rmsprop.rule.update`, operation by operation: results equal the NumPy rule bit for bit, whatever
  the alignment, the strides, the tail, the number of threads or the way the work is split.
* Scalars are derived once on the host, in double, by `Rule.scalars(t)`, and rounded once to the dtype of the state.
* State has the dtype promote(parameter's, float32): float16, bfloat16 and float32 parameters keep float32 state.
  Gradients have their parameter's dtype and are never written.
* Everything is checked before the first write: shapes, dtypes, writability, elements that share memory, and with
  `nonfinite="error"` every gradient entry. A refused step changes nothing.
* Step counters are part of the state and move in the same call.

`cpu` is the only caller of the native code, and runs blocked NumPy where that could not be built.
"""
