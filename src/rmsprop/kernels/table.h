// Where the numbers of a step lie: addresses, shapes and strides of arrays and tensors, read cheaply.
//
// torch tensors are read through DLPack's C exchange table (`type(t).__dlpack_c_exchange_api__`, DLPack 1.3): one C call,
// some 60 ns, and no torch headers. NumPy arrays, and all else, are read through the buffer protocol.
#pragma once

#define PY_SSIZE_T_CLEAN
#ifndef Py_GIL_DISABLED  // free-threaded Python has no stable ABI before 3.15
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

namespace rmsprop {

// The parts of DLPack 1.x (github.com/dmlc/dlpack, dlpack.h) that are read here.
namespace dl {
struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // strides in elements; null means contiguous
  uint64_t byte_offset;
};
struct Exchange {
  uint32_t major, minor;
  void *previous, *allocator, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};
constexpr int cpu = 1, integer = 0, real = 2, bfloat = 4;
}  // namespace dl

enum Dtype { F32, F64, F16, BF16, UNKNOWN, I32, I64 };  // what comes after UNKNOWN are no numbers to compute with
inline int64_t itemsize(Dtype d) { return d == F64 || d == I64 ? 8 : d == F32 || d == I32 ? 4 : 2; }

struct View {
  char* data = nullptr;
  Dtype dtype = UNKNOWN;
  int ndim = 0;
  const int64_t *shape = nullptr, *strides = nullptr;
  int64_t unit = 1;  // bytes a stride counts: the item size from DLPack, 1 from a buffer
  bool writable = true, contiguous = true;
  int64_t device = CPU;  // DLPack's type and number of it

  static constexpr int64_t CPU = int64_t(dl::cpu) << 32;

  bool on_cpu() const { return device == CPU; }
  int64_t stride(int k) const { return strides[k] * unit; }

  int64_t count() const {
    int64_t n = 1;
    for (int k = 0; k < ndim; ++k) n *= shape[k];
    return n;
  }

  bool same_shape(const View& other) const {
    return ndim == other.ndim && std::equal(shape, shape + ndim, other.shape);
  }

  // Whether there is one number for each row of the other, in a shape that can be broadcast to its.
  bool one_a_row(const View& other) const {
    const auto is_one = [](int64_t n) { return n == 1; };
    return ndim == other.ndim && shape[0] == other.shape[0] && std::all_of(shape + 1, shape + ndim, is_one);
  }

  // Strides along axes of length 1 say nothing.
  bool same_layout(const View& other) const {
    if (contiguous && other.contiguous) return true;
    if (!strides || !other.strides) return false;
    for (int k = 0; k < ndim; ++k)
      if (shape[k] > 1 && stride(k) * itemsize(other.dtype) != other.stride(k) * itemsize(dtype)) return false;
    return true;
  }

  bool row_major() const {
    if (!strides) return true;
    int64_t expected = itemsize(dtype);
    for (int k = ndim; k-- > 0; expected *= shape[k])
      if (shape[k] != 1 && stride(k) != expected) return false;
    return true;
  }
};

enum Packing { DENSE, DISJOINT, OVERLAPPING };

// DENSE: a block of memory without gaps, in some order of the axes. OVERLAPPING: two elements may share memory.
inline Packing packing(const View& a) {
  if (a.contiguous || a.count() == 0) return DENSE;
  std::vector<std::pair<int64_t, int64_t>> axes;
  bool dense = true;
  for (int k = 0; k < a.ndim; ++k) {
    if (a.shape[k] == 1) continue;
    axes.emplace_back(std::llabs(a.stride(k)), a.shape[k]);
    dense &= a.stride(k) > 0;
  }
  std::sort(axes.begin(), axes.end());
  int64_t extent = itemsize(a.dtype);  // bytes the axes so far reach over
  for (auto [stride, length] : axes) {
    if (stride < extent) return OVERLAPPING;
    dense &= stride == extent;
    extent += stride * (length - 1);
  }
  return dense ? DENSE : DISJOINT;
}

// Reads views and keeps what they look at alive, until it is destroyed (with the GIL held).
class Reader {
 public:
  Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() {
    for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
    for (PyObject* object : objects_) Py_DECREF(object);
  }

  // False with a Python exception set: the object is no tensor and no buffer.
  bool read(PyObject* object, View& out) {
    keep(object);
    const dl::Exchange* api;
    if (!exchange(Py_TYPE(object), api)) return false;
    if (!(api ? from_tensor(object, api, out) : from_buffer(object, out))) return false;
    out.contiguous = out.row_major();
    return true;
  }

  void reserve(size_t more) { objects_.reserve(objects_.size() + more); }

  void keep(PyObject* object) {
    Py_INCREF(object);
    objects_.push_back(object);
  }

 private:
  static bool from_tensor(PyObject* object, const dl::Exchange* api, View& out) {
    dl::Tensor t;
    if (api->tensor_from_object(object, &t) != 0) return false;
    out.data = static_cast<char*>(t.data) + t.byte_offset;
    out.ndim = t.ndim;
    out.shape = t.shape;
    out.strides = t.strides;
    out.dtype = t.lanes != 1 ? UNKNOWN
                : t.code == dl::bfloat && t.bits == 16 ? BF16
                : t.code == dl::integer ? t.bits == 64 ? I64 : t.bits == 32 ? I32 : UNKNOWN
                : t.code != dl::real ? UNKNOWN
                : t.bits == 32 ? F32 : t.bits == 64 ? F64 : t.bits == 16 ? F16 : UNKNOWN;
    out.unit = itemsize(out.dtype);
    out.device = int64_t(t.device_type) << 32 | (t.device_type == dl::cpu ? 0 : t.device_id);
    return true;
  }

  bool from_buffer(PyObject* object, View& out) {
    buffers_.emplace_back();
    Py_buffer& b = buffers_.back();
    if (PyObject_GetBuffer(object, &b, PyBUF_FULL_RO) != 0) {
      buffers_.pop_back();
      return false;
    }
    const char* format = b.format ? b.format : "B";
    if (std::strchr("@=^<", format[0]) && format[0]) ++format;
    out.dtype = std::strlen(format) != 1 ? UNKNOWN
                : *format == 'f' ? F32 : *format == 'd' ? F64 : *format == 'e' ? F16
                : !std::strchr("ilq", *format) ? UNKNOWN : b.itemsize == 8 ? I64 : b.itemsize == 4 ? I32 : UNKNOWN;
    out.data = static_cast<char*>(b.buf);
    out.ndim = b.ndim;
    out.shape = reinterpret_cast<const int64_t*>(b.shape);
    out.strides = reinterpret_cast<const int64_t*>(b.strides);
    out.unit = 1;
    out.writable = !b.readonly;
    return true;
  }

  // The exchange table of a type, or null; a step meets one or two types, so a list serves.
  bool exchange(PyTypeObject* type, const dl::Exchange*& api) {
    for (auto& [known, table] : types_)
      if (known == type) return api = table, true;
    api = nullptr;
    PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
    if (capsule) {
      api = static_cast<const dl::Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
      Py_DECREF(capsule);
      if (!api) return false;
      if (api->major != 1) api = nullptr;
    } else if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
      PyErr_Clear();
    } else {
      return false;
    }
    types_.emplace_back(type, api);
    return true;
  }

  std::vector<PyObject*> objects_;
  std::deque<Py_buffer> buffers_;
  std::vector<std::pair<PyTypeObject*, const dl::Exchange*>> types_;
};

}  // namespace rmsprop
