// One RMSprop step for many arrays in one call from XLA: what `rmsprop.jax` runs on a CPU. The rule is in rule.h.
//
// Arguments: flags (int32), the scalars in the arrays' dtype, then for each parameter g, p, v, m, b, those that the rule has. Results: for
// each parameter p, v, m, b, in the memory of the arguments of these names, as XLA has been told; with flag SKIP last the
// number of entries left alone. All arrays are of one dtype and lie in memory without gaps. g is not written.
#define PY_SSIZE_T_CLEAN
#ifndef Py_GIL_DISABLED  // free-threaded Python has no stable ABI before 3.15
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "rule.h"
#include "xla_ffi.h"

namespace rmsprop {
namespace {

namespace x = xla_ffi;

constexpr int64_t PIECE = 1 << 16;          // elements a thread takes at a time
constexpr int64_t WORTH_THREADS = 1 << 20;  // elements of a step that pay for starting threads

struct Row {
  char* at[OPERANDS];  // null where there is none
  int64_t count;
};

template <class S>
using Loop = int64_t (*)(char* const* at, int64_t n, const Scalars<S>& k, double rate);

template <class S, bool NEUTRAL, int... FLAGS>
Loop<S> choose(int flags, std::integer_sequence<int, FLAGS...>) {
  constexpr Loop<S> loops[] = {update_ahead<S, FLAGS, NEUTRAL, false>...};
  return loops[flags & (KINDS - 1)];
}

template <class S>
int64_t run(const Row& row, int64_t begin, int64_t n, Loop<S> loop, const Scalars<S>& k) {
  char* at[OPERANDS];
  for (int o = P; o < OPERANDS; ++o) at[o] = row.at[o] ? row.at[o] + begin * int64_t(sizeof(S)) : nullptr;
  return loop(at, n, k, 0);
}

// The arithmetic of C and NumPy, whatever XLA has set: it takes subnormal numbers for 0. Threads inherit it.
struct Arithmetic {
  std::fenv_t before;
  Arithmetic() {
    std::fegetenv(&before);
    std::fesetenv(FE_DFL_ENV);
  }
  ~Arithmetic() { std::fesetenv(&before); }
};

template <class S>
int64_t step(const std::vector<Row>& rows, int flags, const Scalars<S>& k) {
  const Arithmetic plain;
  constexpr auto kinds = std::make_integer_sequence<int, KINDS>();
  const Loop<S> loop = neutral(k) ? choose<S, true>(flags, kinds) : choose<S, false>(flags, kinds);
  int64_t elements = 0;
  for (const Row& row : rows) elements += row.count;
  const int threads = elements < WORTH_THREADS ? 1 : int(std::thread::hardware_concurrency());
  std::atomic<int64_t> next{0}, skipped{0};
  const auto work = [&] {  // whoever is free takes the next piece
    int64_t mine = next.fetch_add(1), seen = 0, sum = 0;
    for (const Row& row : rows) {
      const int64_t pieces = (row.count + PIECE - 1) / PIECE;
      for (; mine < seen + pieces; mine = next.fetch_add(1)) {
        const int64_t begin = (mine - seen) * PIECE;
        sum += run(row, begin, std::min(PIECE, row.count - begin), loop, k);
      }
      seen += pieces;
    }
    skipped += sum;
  };
  std::vector<std::thread> team;
  try {
    while (int(team.size()) + 1 < threads) team.emplace_back(work);
  } catch (const std::system_error&) {  // no thread to be had: this one does the rest
  }
  work();
  for (std::thread& t : team) t.join();
  return skipped;
}

// -------------------------------------------------------------------------------------------------- reading XLA's table

class Table {
 public:
  explicit Table(const x::Call& call) : arguments_(call.arguments), results_(call.results) {}

  // The next argument or result, or null: there is none, or it is no array of this type.
  const x::Buffer* argument(int type) { return take(arguments_, next_argument_, type); }
  const x::Buffer* result(int type) { return take(results_, next_result_, type); }
  bool more() const { return next_argument_ < arguments_.size; }
  bool done() const { return next_argument_ == arguments_.size && next_result_ == results_.size; }

 private:
  static const x::Buffer* take(const x::List& list, int64_t& next, int type) {
    if (next >= list.size || list.kinds[next] != x::BUFFER) return nullptr;
    const auto* buffer = static_cast<const x::Buffer*>(list.items[next++]);
    return buffer->struct_size >= sizeof(x::Buffer) && buffer->type == type ? buffer : nullptr;
  }

  const x::List &arguments_, &results_;
  int64_t next_argument_ = 0, next_result_ = 0;
};

int64_t count(const x::Buffer& buffer) {
  int64_t n = 1;
  for (int64_t k = 0; k < buffer.rank; ++k) n *= buffer.dims[k];
  return n;
}

// One array to update: the result's memory, which holds the argument's numbers. Null if something does not fit.
template <class S>
char* in_place(Table& table, int type, int64_t n) {
  const x::Buffer *from = table.argument(type), *to = table.result(type);
  if (!from || !to || count(*from) != n || count(*to) != n) return nullptr;
  if (from->data != to->data) std::memcpy(to->data, from->data, size_t(n) * sizeof(S));
  return static_cast<char*>(to->data);
}

template <class S>
bool call(Table& table, int type, int flags) {
  const x::Buffer* scalars = table.argument(type);
  Scalars<S> k;
  if (!scalars || count(*scalars) * int64_t(sizeof(S)) != int64_t(sizeof k)) return false;
  std::memcpy(&k, scalars->data, sizeof k);
  std::vector<Row> rows;
  while (table.more()) {
    const x::Buffer* g = table.argument(type);
    if (!g) return false;
    const int64_t n = count(*g);
    char* p = in_place<S>(table, type, n);
    char* v = in_place<S>(table, type, n);
    char* m = flags & CENTERED ? in_place<S>(table, type, n) : nullptr;
    char* b = flags & MOMENTUM ? in_place<S>(table, type, n) : nullptr;
    if (n && !(p && v && (m || !(flags & CENTERED)) && (b || !(flags & MOMENTUM)))) return false;
    rows.push_back({{p, static_cast<char*>(g->data), v, m, b, nullptr}, n});
  }
  const x::Buffer* skipped = flags & SKIP ? table.result(x::S32) : nullptr;
  if ((flags & SKIP && !skipped) || !table.done()) return false;
  const int64_t n = step(rows, flags, k);
  if (skipped) *static_cast<int32_t*>(skipped->data) = int32_t(std::min<int64_t>(n, INT32_MAX));
  return true;
}

x::Error* refused(const x::Call& frame, const char* message) {
  x::NewError error = {sizeof error, nullptr, message, x::INVALID_ARGUMENT};
  return frame.api->new_error(&error);
}

// Answers what XLA asks of a handler when it is registered. Version 0.1 has all that is used here.
void introduce(x::MetadataExtension& question) {
  x::Metadata& answer = *question.metadata;
  answer.version = {sizeof(x::Version), nullptr, 0, 1};
  answer.traits = 0;
  if (answer.struct_size >= sizeof answer) answer.state_type = 0;
}

extern "C" x::Error* rmsprop_step(x::Call* frame) {
  for (x::Extension* e = frame->extensions; e; e = e->next)
    if (e->type == x::METADATA) return introduce(*reinterpret_cast<x::MetadataExtension*>(e)), nullptr;
  if (frame->struct_size < sizeof(x::Call)) return refused(*frame, "rmsprop: a call frame of an older XLA");
  try {
    Table table(*frame);
    const x::Buffer* flags = table.argument(x::S32);
    if (!flags || !table.more()) return refused(*frame, "rmsprop: expected flags and scalars");
    const int type = static_cast<const x::Buffer*>(frame->arguments.items[1])->type;
    const int chosen = *static_cast<const int32_t*>(flags->data);
    const bool fits = type == x::F32   ? call<float>(table, type, chosen)
                      : type == x::F64 ? call<double>(table, type, chosen)
                                       : false;
    return fits ? nullptr : refused(*frame, "rmsprop: arrays do not fit together");
  } catch (const std::bad_alloc&) {
    return refused(*frame, "rmsprop: out of memory");
  }
}

int execute(PyObject* module) {
  PyObject* capsule = PyCapsule_New(reinterpret_cast<void*>(rmsprop_step), "xla._CUSTOM_CALL_TARGET", nullptr);
  const int failed = capsule ? PyModule_AddObjectRef(module, "step", capsule) : -1;
  Py_XDECREF(capsule);
  return failed;
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)}, {0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu_ffi", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace rmsprop

PyMODINIT_FUNC RMSPROP_INIT() { return PyModuleDef_Init(&rmsprop::definition); }
