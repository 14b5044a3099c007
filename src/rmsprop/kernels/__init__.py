"""The update made fast: what every kernel promises.

A kernel takes *groups*: tensors that share one `Rule`. One call makes the whole step, for all groups.

* The arithmetic is `rmsprop.rule.update`, operation by operation: results equal the NumPy rule bit for bit, whatever
  the alignment, the strides, the tail, the number of threads or the way the work is split. A NaN is a NaN: its sign and
  payload are left to the compiler.
* Scalars are derived once on the host, in double, by `Rule.scalars(t)`, and rounded once to the dtype of the
  arithmetic: float64 for float64 parameters, float32 for all others.
* An average of the weights is `rmsprop.averaging.update` of the parameters as they are stored; its rate comes with the
  scalars. It needs a dense gradient.
* State has the dtype of the arithmetic, or is bfloat16 that is rounded at random. Gradients have their parameter's
  dtype and are never written.
* The squares of a row (`rmsprop.rowwise`) are summed in double, always in the same order, but not the order of NumPy or
  torch: in float64 the last bits may differ from theirs.
* Everything is checked before the first write: shapes, dtypes, writability, elements that share memory, and with
  `nonfinite="error"` every gradient entry. A refused step changes nothing.
* Step counters are part of the state and move in the same call.

`cpu` is the only caller of the native code, and runs blocked NumPy where that could not be built.
"""
