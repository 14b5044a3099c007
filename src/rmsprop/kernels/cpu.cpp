// One step for any number of tensors in one call. The contract is in kernels/__init__.py, the rules in rule.h and rprop.h.
//
// Compiled twice from this text: for the platform's baseline and, on x86, for x86-64-v3; cpu.py picks at load.
// Threads are started for a step and joined before it returns: nothing survives that a fork could break or that would
// spin beside another library's pool. They are only started where a step is long against starting them.
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "formats.h"
#include "narrow.h"
#include "rows.h"
#include "rprop.h"
#include "rule.h"
#include "table.h"

namespace rmsprop {
namespace {

constexpr int64_t PIECE = 1 << 16;         // elements a thread takes at a time
constexpr int64_t WORTH_THREADS = 1 << 20; // work of a step that pays for starting threads
constexpr int64_t REACH = 64;              // what it costs to reach a row of a table anywhere in memory, in elements
constexpr int64_t AHEAD_ROWS = 8;          // rows of a table whose memory is asked for in advance
constexpr int64_t WIDE = 8;                // elements of a row that are worth a loop of their own
constexpr size_t AHEAD = 4;                // rows whose memory is asked for in advance
constexpr int64_t BLOCK = 512;             // elements gathered or converted at a time
enum MoreFlags { ERROR = 16, STOCHASTIC = 32 };
enum RpropFlag { RPROP = 64, FORGET = 128, BACK = 256, OPTAX = 512 };  // its s and q are in the places of v and m
constexpr int ROWWISE = 1024;  // one mean square for each row
constexpr int AVERAGE = 2048;  // an average of the parameter, with a rate after the scalars
const char* const KEYS[] = {"square_avg", "grad_avg", "momentum_buffer", "variance", "step_size", "prev", "weight_avg", "step"};
enum Key { SQUARE_AVG, GRAD_AVG, MOMENTUM_BUFFER, VARIANCE, STEP_SIZE, PREV, WEIGHT_AVG, STEP, KEY_COUNT };

struct Coefficients {
  Scalars<float> f32;
  Scalars<double> f64;
  RpropScalars<float> rprop32;
  RpropScalars<double> rprop64;
  double rate = 0;  // of the average
};
inline const Scalars<float>& of(const Coefficients& k, float) { return k.f32; }
inline const Scalars<double>& of(const Coefficients& k, double) { return k.f64; }
inline const RpropScalars<float>& rprop_of(const Coefficients& k, float) { return k.rprop32; }
inline const RpropScalars<double>& rprop_of(const Coefficients& k, double) { return k.rprop64; }

using Loop = int64_t (*)(char* const* at, int64_t n, const Coefficients& k);
using Measure = void (*)(const char* before, char* const* at, int64_t n, const Coefficients& k, Sums& sums);
using Squares = void (*)(const char* p, const char* g, int64_t n, const Coefficients& k, double& sum, int64_t& used);
using CatchUp = void (*)(char* const* at, int64_t n, const Factors& k);

template <class S, int FLAGS, bool AVERAGES>
int64_t step_loop(char* const* at, int64_t n, const Coefficients& k) {
  const Scalars<S>& scalars = of(k, S());
  return (neutral(scalars) ? update_ahead<S, FLAGS, true, AVERAGES> : update_ahead<S, FLAGS, false, AVERAGES>)(
      at, n, scalars, k.rate);
}

template <class S, int FLAGS>
int64_t rprop_loop(char* const* at, int64_t n, const Coefficients& k) {
  rprop<S, bool(FLAGS & FORGET), bool(FLAGS & BACK), bool(FLAGS & OPTAX)>(at[P], at[G], at[V], at[M], n, rprop_of(k, S()));
  return 0;
}

template <class S>
Loop rprop_loop_for(int flags) {
  return flags & OPTAX  ? rprop_loop<S, FORGET | OPTAX>
         : flags & BACK ? rprop_loop<S, FORGET | BACK>
                        : flags & FORGET ? rprop_loop<S, FORGET> : rprop_loop<S, 0>;
}

template <class S, int FLAGS>
int64_t check_loop(char* const* at, int64_t n, const Coefficients& k) {
  return unusable<S, FLAGS & DECAY>(at[P], at[G], n, of(k, S()));
}

template <class S, int FLAGS>
void measure_loop(const char* before, char* const* at, int64_t n, const Coefficients& k, Sums& sums) {
  measure<S, FLAGS & (CENTERED | SKIP)>(before, at, n, of(k, S()), sums);
}

template <class S, int FLAGS>
void squares_loop(const char* p, const char* g, int64_t n, const Coefficients& k, double& sum, int64_t& used) {
  add_squares<S, FLAGS & (SKIP | DECAY)>(p, g, n, of(k, S()), sum, used);
}

template <class S, int FLAGS>
void catch_up_loop(char* const* at, int64_t n, const Factors& k) {
  catch_up<S, FLAGS & ~SKIP>(at[P], at[V], at[M], at[B], n, k);
}

struct Loops {
  Loop step[KINDS], averaged_step[KINDS], check[KINDS];
  Measure measure[KINDS];
  Squares squares[KINDS];
  CatchUp catch_up[KINDS];
};
template <class S, int... FLAGS>
constexpr Loops each(std::integer_sequence<int, FLAGS...>) {
  return {{step_loop<S, FLAGS, false>...}, {step_loop<S, FLAGS, true>...},
          {check_loop<S, FLAGS>...}, {measure_loop<S, FLAGS>...}, {squares_loop<S, FLAGS>...}, {catch_up_loop<S, FLAGS>...}};
}
const Loops FLOAT_LOOPS = each<float>(std::make_integer_sequence<int, KINDS>()),
            DOUBLE_LOOPS = each<double>(std::make_integer_sequence<int, KINDS>());

struct Row {
  View view[OPERANDS];
  View counter;
  bool counts = true;  // whether the counter is read and moved here
  int64_t count, group, index;
  PyObject* name;  // for messages, or null
  int flags;
  bool dense;   // all operands lie in memory in the same order, without gaps
  bool direct;  // and the loops can run on that memory, without conversion
  const Coefficients* k;
  Rows* rows;  // of a table, where the gradient or the mean square is one of rows; or null. The count is then that of
               // their elements
  uint64_t offset, key;  // of the random numbers: index of the first element, and what seed and step make
  mutable Sums sums;

  // What a step costs, in elements that lie in order.
  int64_t work() const { return count + (rows ? REACH * rows->count() : 0); }

  const Loops& loops() const { return view[P].dtype == F64 ? DOUBLE_LOOPS : FLOAT_LOOPS; }
  int kind() const { return flags & (KINDS - 1); }
  Loop step_loop() const {
    if (flags & RPROP) return view[P].dtype == F64 ? rprop_loop_for<double>(flags) : rprop_loop_for<float>(flags);
    return (averages() && !averages_rounded() ? loops().averaged_step : loops().step)[kind()];
  }

  // Whether there is an average, and whether that takes a pass of its own, over parameters that have been rounded.
  bool averages() const { return flags & AVERAGE; }
  bool averages_rounded() const { return averages() && is_narrow(view[P].dtype); }

  // Whether there is one mean square for each row.
  bool is_rowwise() const { return flags & ROWWISE && view[P].ndim > 1 && !view[V].same_shape(view[P]); }

  // Whether an operand is rounded at random: bfloat16 state always is.
  bool dithers(int o) const { return view[o].dtype == BF16 && (o == P ? flags & STOCHASTIC : o != G); }
  bool dithers() const { return dithers(P) || dithers(V); }

  // How many elements from i on have one key: it changes with the upper half of their index.
  int64_t same_key(int64_t i) const { return (int64_t(1) << 32) - int64_t((offset + uint64_t(i)) & 0xffffffff); }

  Dice dice(int64_t i) const {
    const uint64_t index = offset + uint64_t(i), k = mix(key + (index >> 32));
    return {uint32_t(index), uint32_t(k), uint32_t(k >> 32)};
  }
};

inline bool has(const Row& row, int operand) {
  return operand <= V || (operand == M && row.flags & (CENTERED | RPROP)) || (operand == B && row.flags & MOMENTUM) ||
         (operand == A && row.averages());
}

// ---------------------------------------------------------------------------------------------- running over elements

// Calls f(address, i) for elements begin .. begin + n of a, in row-major order of its indices.
template <class F>
void walk(const View& a, int64_t begin, int64_t n, F f) {
  std::vector<int64_t> at(size_t(a.ndim) + 1);
  char* start = a.data;
  for (int k = a.ndim; k-- > 0; begin /= a.shape[k]) {
    at[k] = begin % a.shape[k];
    start += at[k] * a.stride(k);
  }
  const int last = a.ndim - 1;
  for (int64_t i = 0; i < n;) {
    const int64_t run = std::min(n - i, a.shape[last] - at[last]), stride = a.stride(last);
    for (int64_t j = 0; j < run; ++j) f(start + j * stride, i + j);
    i += run;
    at[last] += run;
    start += run * stride;
    for (int k = last; k > 0 && at[k] == a.shape[k]; --k) {
      start += a.stride(k - 1) - at[k] * a.stride(k);
      at[k] = 0;
      ++at[k - 1];
    }
  }
}

template <size_t SIZE>
void copy(const View& a, int64_t begin, int64_t n, char* block, bool out) {
  if (out)
    walk(a, begin, n, [=](char* at, int64_t i) { std::memcpy(at, block + i * SIZE, SIZE); });
  else
    walk(a, begin, n, [=](char* at, int64_t i) { std::memcpy(block + i * SIZE, at, SIZE); });
}

void copy(const View& a, int64_t begin, int64_t n, char* block, bool out) {
  const int64_t size = itemsize(a.dtype);
  (size == 8 ? copy<8> : size == 4 ? copy<4> : copy<2>)(a, begin, n, block, out);
}

// Fills a block with the mean squares that elements begin .. begin + n share with their rows.
template <class S>
void spread(const char* squares, int64_t begin, int64_t n, int64_t width, char* block) {
  int64_t place = begin / width, left = width - begin % width;
  for (int64_t k = 0; k < n; left = width, ++place) {
    const S square = read<S>(squares, place);
    for (const int64_t end = std::min(n, k + left); k < end; ++k) write(block, k, square);
  }
}

#ifdef RMSPROP_EIGHT
template <class F, int FLAGS, bool AVERAGE>
int64_t narrow_average(char* const* at, int64_t n, const Coefficients& k) {
  return (neutral(k.f32) ? update_narrow<F, FLAGS, true, AVERAGE> : update_narrow<F, FLAGS, false, AVERAGE>)(at, n, k.f32, k.rate);
}
template <class F, int FLAGS>
int64_t narrow_loop(char* const* at, int64_t n, const Coefficients& k) {
  return (at[A] ? narrow_average<F, FLAGS, true> : narrow_average<F, FLAGS, false>)(at, n, k);
}
template <class F, int... FLAGS>
Loop narrow_loop_for(int kind, std::integer_sequence<int, FLAGS...>) {
  constexpr Loop loops[] = {narrow_loop<F, FLAGS>...};
  return loops[kind];
}

// Steps elements from `begin` on in a loop that converts them itself, if they are for it, and moves `begin` behind them.
int64_t step_narrow(const Row& row, int64_t& begin, int64_t end) {
  const Dtype format = row.view[P].dtype;
  const bool fits = is_narrow(format) && row.view[V].dtype == F32 && row.dense && !(row.flags & (STOCHASTIC | RPROP));
  const int64_t whole = fits ? (end - begin) / SIXTEEN * SIXTEEN : 0;
  if (!whole) return 0;
  char* at[OPERANDS] = {};
  for (int o = P; o < OPERANDS; ++o)
    if (has(row, o)) at[o] = row.view[o].data + begin * itemsize(row.view[o].dtype);
  begin += whole;
  constexpr auto kinds = std::make_integer_sequence<int, KINDS>();
  const Loop loop =
      format == F16 ? narrow_loop_for<SixteenHalf>(row.kind(), kinds) : narrow_loop_for<SixteenBFloat16>(row.kind(), kinds);
  return loop(at, whole, *row.k);
}
#else
int64_t step_narrow(const Row&, int64_t&, int64_t) { return 0; }
#endif

// Runs a loop over elements begin .. end of a row, in place where that can be. Otherwise they pass through blocks: gathered
// where they are strided, converted where they have 16 bits, and back; so the bits are the same. A plain step of 16 bits may
// have a loop that needs no blocks.
// squares: of a parameter with one mean square for each row, what those from `begin` on are after the step.
int64_t visit(const Row& row, int64_t begin, int64_t end, Loop loop, bool writes, Sums* sums = nullptr,
              const char* squares = nullptr) {
  alignas(64) char gathered[OPERANDS][BLOCK * 8], converted[OPERANDS][BLOCK * 4], before[BLOCK * 8];
  char *stored[OPERANDS] = {}, *at[OPERANDS] = {};
  const bool wide = row.view[P].dtype == F64;
  int64_t result = 0;
  if (writes && !sums && !squares) result += step_narrow(row, begin, end);
  for (int64_t i = begin, n; i < end; i += n) {
    n = row.direct && !sums ? end - i : std::min(end - i, BLOCK);
    if (row.dithers()) n = std::min(n, row.same_key(i));
    for (int o = P; o < (writes ? OPERANDS : V); ++o) {
      if (!has(row, o) || (o == V && squares)) continue;
      const View& a = row.view[o];
      const bool in_place = row.dense || a.contiguous;
      stored[o] = in_place ? a.data + i * itemsize(a.dtype) : gathered[o];
      if (!in_place) copy(a, i, n, stored[o], false);
      at[o] = is_narrow(a.dtype) ? converted[o] : stored[o];
      if (is_narrow(a.dtype)) decode(a.dtype, stored[o], at[o], n);
    }
    if (squares) (wide ? spread<double> : spread<float>)(squares, i - begin, n, row.rows->width, at[V] = gathered[V]);
    if (sums) std::memcpy(before, at[P], size_t(n * (wide ? 8 : 4)));
    result += loop(at, n, *row.k);
    for (int o = P; writes && o < OPERANDS; ++o) {
      if (o == G || !has(row, o) || (o == V && squares)) continue;
      const View& a = row.view[o];
      if (o == A && row.averages_rounded()) {
        decode(row.view[P].dtype, stored[P], at[P], n);
        average<float>(at[P], at[A], n, row.k->rate);
      }
      if (is_narrow(a.dtype)) encode(a.dtype, at[o], stored[o], n, row.dice(i), row.dithers(o) ? std::max(o - 1, 0) : -1);
      if (stored[o] == gathered[o]) copy(a, i, n, stored[o], true);
    }
    if (!sums) continue;
    if (is_narrow(row.view[P].dtype)) decode(row.view[P].dtype, stored[P], at[P], n);  // what the weights are now
    row.loops().measure[row.kind()](before, at, n, *row.k, *sums);
  }
  return result;
}

// Calls f(place among the touched rows, place in the row, place in the table, place in the block, length) for each run of
// elements of one row among `n` from `begin` on, counting in the touched rows one after the other.
template <class F>
void each_run(const Row& row, int64_t begin, int64_t n, F f) {
  const int64_t width = row.rows->width;
  if (n <= 0) return;
  const bool dithers = row.dithers();
  int64_t place = begin / width, j = begin % width;
  for (int64_t k = 0, length; k < n; k += length) {
    const int64_t element = row.rows->row(place) * width + j;
    length = std::min(n - k, width - j);
    if (dithers) length = std::min(length, row.same_key(element));
    f(place, j, element, k, length);
    if ((j += length) == width) ++place, j = 0;
  }
}

// `visit_rows` where the loops can run on the rows themselves.
int64_t visit_rows_in_place(const Row& row, int64_t begin, int64_t end, Loop loop) {
  const Rows& rows = *row.rows;
  const int64_t size = itemsize(row.view[P].dtype), width = rows.width;
  Memory missed(rows);
  int64_t result = 0;
  for (int64_t i = begin; i < end;) {
    const int64_t place = i / width, j = i % width, n = std::min(end - i, width - j);
    for (int o = P; o < OPERANDS && place + AHEAD_ROWS < rows.count(); ++o)  // asked for in advance: they lie anywhere
      for (int64_t byte = 0; o != G && has(row, o) && byte < std::min<int64_t>(n * size, 512); byte += 64)
        __builtin_prefetch(row.view[o].data + rows.row(place + AHEAD_ROWS) * width * size + byte, 1);
    char* at[OPERANDS] = {};
    for (int o = P; o < OPERANDS; ++o)
      if (o != G && has(row, o)) at[o] = row.view[o].data + (rows.row(place) * width + j) * size;
    if (loop) at[G] = const_cast<char*>(rows.gradient_at(place)) + j * size;
    if (rows.catches_up() && rows.last_step(place) < rows.now())
      row.loops().catch_up[row.kind()](at, n, missed.at(rows.last_step(place)));
    if (loop) result += loop(at, n, *row.k);
    i += n;
  }
  return result;
}

// `visit` for a gradient of rows. They pass through blocks, and what they have missed is made up for there.
// Without a gradient, that is all.
int64_t visit_rows(const Row& row, int64_t begin, int64_t end, Loop loop, bool writes, Sums* sums = nullptr,
                   const char* squares = nullptr) {
  const bool narrow = is_narrow(row.view[P].dtype) || is_narrow(row.view[V].dtype);
  if (writes && !sums && !squares && !narrow && row.rows->width >= WIDE) return visit_rows_in_place(row, begin, end, loop);
  alignas(64) char block[OPERANDS][BLOCK * 8], before[BLOCK * 8];
  char* at[OPERANDS];
  for (int o = P; o < OPERANDS; ++o) at[o] = block[o];
  const Rows& rows = *row.rows;
  const int64_t size = row.view[P].dtype == F64 ? 8 : 4;
  const auto used = [&](int o) {
    return o == G ? rows.has_gradient : (writes || o == P) && has(row, o) && !(o == V && squares);
  };
  Memory missed(rows);
  int64_t result = 0;
  for (int64_t i = begin, n; i < end; i += n) {
    n = std::min(end - i, BLOCK);
    each_run(row, i + n, std::min(end - i - n, BLOCK), [&](int64_t, int64_t, int64_t element, int64_t, int64_t length) {
      for (int o = P; o < OPERANDS; ++o)  // asked for in advance: these rows lie anywhere
        for (int64_t byte = 0; o != G && used(o) && byte < length * itemsize(row.view[o].dtype); byte += 64)
          __builtin_prefetch(row.view[o].data + element * itemsize(row.view[o].dtype) + byte, 1);
    });
    if (squares) (size == 8 ? spread<double> : spread<float>)(squares, i - begin, n, rows.width, at[V]);
    each_run(row, i, n, [&](int64_t place, int64_t j, int64_t element, int64_t k, int64_t length) {
      char* here[OPERANDS];
      for (int o = P; o < OPERANDS; ++o) {
        here[o] = block[o] + k * size;
        if (!used(o)) continue;
        const View& a = row.view[o];
        if (o == G)
          rows.gradient(place, j, length, here[o]);
        else
          load(a.dtype, a.data + element * itemsize(a.dtype), here[o], length);
      }
      if (!writes || !rows.catches_up()) return;
      const int64_t s = rows.last_step(place);
      if (s == rows.now()) return;
      Factors factors = missed.at(s);
      if (squares) factors.fade = 1;  // they have been made up for
      row.loops().catch_up[row.kind()](here, length, factors);
    });
    if (sums) std::memcpy(before, at[P], size_t(n * size));
    if (loop) result += loop(at, n, *row.k);
    if (!writes) continue;
    each_run(row, i, n, [&](int64_t, int64_t, int64_t element, int64_t k, int64_t length) {
      for (int o = P; o < OPERANDS; ++o) {
        if (o == G || !used(o)) continue;
        const View& a = row.view[o];
        char *from = block[o] + k * size, *to = a.data + element * itemsize(a.dtype);
        if (!is_narrow(a.dtype)) {
          std::memcpy(to, from, size_t(length * size));
          continue;
        }
        encode(a.dtype, from, to, length, row.dice(element), row.dithers(o) ? std::max(o - 1, 0) : -1);
        if (sums) decode(a.dtype, to, from, length);  // what is kept now
      }
    });
    if (sums) row.loops().measure[row.kind()](before, at, n, *row.k, *sums);
  }
  return result;
}

// Elements i .. i + n of an operand, in row-major order, as numbers to compute with: where they are, or in a block.
const char* numbers(const View& a, int64_t i, int64_t n, char* block) {
  if (a.contiguous && !is_narrow(a.dtype)) return a.data + i * itemsize(a.dtype);
  char stored[BLOCK * 8];
  if (!a.contiguous) copy(a, i, n, stored, false);
  load(a.dtype, a.contiguous ? a.data + i * itemsize(a.dtype) : stored, block, n);
  return block;
}

// The mean squares of rows after the step: `square` in rmsprop/rowwise.py, for touched rows begin .. end.
template <class S>
void next_squares(const Row& row, int64_t begin, int64_t end, char* out) {
  const Rows& rows = *row.rows;
  const Scalars<S>& k = of(*row.k, S());
  const Squares add = row.loops().squares[row.kind()];
  const S tiny = std::numeric_limits<S>::min();
  alignas(64) char p[BLOCK * 8], g[BLOCK * 8], v0[8];
  Memory missed(rows);
  for (int64_t place = begin; place < end; ++place) {
    const View& squares = row.view[V];
    const int64_t r = rows.row(place), ahead = rows.row(std::min(place + 16, end - 1));
    if (squares.contiguous) __builtin_prefetch(squares.data + ahead * itemsize(squares.dtype), 1);
    S v = read<S>(numbers(squares, r, 1, v0), 0);
    if (rows.catches_up() && rows.last_step(place) < rows.now()) {
      v = S(missed.at(rows.last_step(place)).fade) * v;
      v = v < tiny ? S(0) : v;
    }
    double sum = 0;
    int64_t used = 0;
    for (int64_t j = 0, n; rows.has_gradient && j < rows.width; j += n) {
      const int64_t element = r * rows.width + j;
      n = std::min(rows.width - j, BLOCK);
      if (!rows.dense) rows.gradient(place, j, n, g);
      add(row.flags & DECAY ? numbers(row.view[P], element, n, p) : p,
          rows.dense ? numbers(row.view[G], element, n, g) : g, n, *row.k, sum, used);
    }
    if (used) {
      v = k.beta * v + k.rest * S(sum / double(used));
      v = v < tiny ? S(0) : v;
    }
    write(out, place - begin, v);
  }
}

// Keeps the mean square of a row.
void keep(const Row& row, int64_t r, const char* square) {
  const View& a = row.view[V];
  char stored[8], *to = a.contiguous ? a.data + r * itemsize(a.dtype) : stored;
  if (is_narrow(a.dtype))
    encode(a.dtype, square, to, 1, row.dice(r * row.rows->width), V - 1);
  else
    std::memcpy(to, square, size_t(itemsize(a.dtype)));
  if (!a.contiguous) copy(a, r, 1, stored, true);
}

// The step of rows that have one mean square each: `visit` or `visit_rows` with those as they will be, for some rows at a
// time, so that they are in cache when they are read again.
int64_t visit_rowwise(const Row& row, int64_t begin, int64_t end, Loop loop, Sums* sums) {
  if (begin == end) return 0;
  const bool wide = row.view[P].dtype == F64;
  const int64_t width = row.rows->width, size = wide ? 8 : 4, many = std::max<int64_t>(1, PIECE / width);
  std::vector<char> squares(size_t(std::min(many, (end - begin) / width) * size));
  Coefficients k = *row.k;
  k.f32.beta = 1, k.f64.beta = 1, k.f32.rest = 0, k.f64.rest = 0;  // the loops are to leave them
  Row held = row;
  held.k = &k;
  int64_t result = 0;
  for (int64_t first = begin / width, last; first < end / width; first = last) {
    last = std::min(first + many, end / width);
    (wide ? next_squares<double> : next_squares<float>)(row, first, last, squares.data());
    result += (row.rows->dense ? visit : visit_rows)(held, first * width, last * width, loop, true, sums, squares.data());
    for (int64_t place = first; place < last; ++place)
      keep(row, row.rows->row(place), squares.data() + (place - first) * size);
  }
  return result;
}

int64_t visit_any(const Row& row, int64_t begin, int64_t end, Loop loop, bool writes, Sums* sums = nullptr) {
  if (writes && row.is_rowwise()) return visit_rowwise(row, begin, end, row.rows->has_gradient ? loop : nullptr, sums);
  if (!row.rows || row.rows->dense) return visit(row, begin, end, loop, writes, sums);
  return visit_rows(row, begin, end, row.rows->has_gradient ? loop : nullptr, writes, sums);
}

int64_t check_piece(const Row& row, int64_t begin, int64_t end) {
  return row.flags & ERROR ? visit_any(row, begin, end, row.loops().check[row.kind()], false) : 0;
}

int64_t step_piece(const Row& row, int64_t begin, int64_t end) {
  return visit_any(row, begin, end, row.step_loop(), true);
}

// The same, and each block measured while it is in cache.
int64_t watched_piece(const Row& row, int64_t begin, int64_t end) {
  Sums sums;
  sums.skipped = visit_any(row, begin, end, row.step_loop(), true, &sums);
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  row.sums += sums;
  return sums.skipped;
}

// Asks for the first numbers of a row, so that many small tensors do not wait for memory one after the other.
void prefetch(const Row& row) {
  for (int o = P; o < OPERANDS; ++o)
    for (int64_t byte = 0; has(row, o) && byte < std::min<int64_t>(256, row.count * 4); byte += 64)
      __builtin_prefetch(row.view[o].data + byte, o != G);
  __builtin_prefetch(row.counter.data, 1);
}

struct Piece {
  const Row* row;
  int64_t begin, end;
};

// Calls `one` for all elements of all rows, on several threads where that pays; the sum of what it returns.
int64_t run(const std::vector<Row>& rows, int threads, int64_t (*one)(const Row&, int64_t, int64_t)) {
  int64_t work = 0, result = 0;
  for (const Row& row : rows) work += row.work();
  if (threads < 2 || work < WORTH_THREADS) {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (i + AHEAD < rows.size()) prefetch(rows[i + AHEAD]);
      result += one(rows[i], 0, rows[i].count);
    }
    return result;
  }
  std::vector<Piece> pieces;
  for (const Row& row : rows) {
    int64_t piece = row.rows && row.count ? std::max<int64_t>(BLOCK, PIECE * row.count / row.work()) : PIECE;
    if (row.is_rowwise() && row.count) piece += row.rows->width - 1 - (piece - 1) % row.rows->width;  // whole rows
    for (int64_t i = 0; i < row.count; i += piece) pieces.push_back({&row, i, std::min(i + piece, row.count)});
  }
  std::atomic<size_t> next{0};
  std::atomic<int64_t> total{0};
  const auto help = [&] {  // whoever is free takes the next piece: a busy core slows only its own
    int64_t sum = 0;
    for (size_t i; (i = next.fetch_add(1)) < pieces.size();) sum += one(*pieces[i].row, pieces[i].begin, pieces[i].end);
    total += sum;
  };
  std::vector<std::thread> team;
  team.reserve(size_t(threads));
  try {
    while (int(team.size()) + 1 < threads) team.emplace_back(help);
  } catch (const std::system_error&) {  // no thread to be had: this one does the rest
  }
  help();
  for (std::thread& t : team) t.join();
  return total;
}

// ---------------------------------------------------------------------------------------------- reading a step's table

struct Table {
  Reader reader;
  std::vector<Row> rows;
  std::deque<Coefficients> coefficients;
  std::deque<Rows> touched;
};

bool refuse(const Row& row, const char* what, PyObject* type = PyExc_ValueError) {
  if (row.name)
    PyErr_Format(type, "%S: %s", row.name, what);
  else
    PyErr_Format(type, "parameter %" PRId64 " of group %" PRId64 ": %s", row.index, row.group, what);
  return false;
}

PyObject* keys[KEY_COUNT];

bool read_slot(Table& table, Row& row, PyObject* state, int key, View& view) {
  PyObject* value = PyDict_GetItemWithError(state, keys[key]);
  if (!value) return PyErr_Occurred() ? false : refuse(row, "its state is incomplete");
  return table.reader.read(value, view);
}

int slot_key(const Row& row, int operand) {
  if (row.flags & RPROP) return operand == V ? STEP_SIZE : PREV;
  if (operand == A) return WEIGHT_AVG;
  return operand == M ? GRAD_AVG : operand == B ? MOMENTUM_BUFFER : row.flags & CENTERED ? VARIANCE : SQUARE_AVG;
}

// The same of a gradient of rows and its table; the row's count becomes that of the elements of rows to visit.
bool check_rows(Row& row) {
  Rows& rows = *row.rows;
  const View& p = row.view[P];
  if (p.ndim < 1) return refuse(row, "a gradient of rows is for a table, which has at least one dimension");
  for (int o = P; o < OPERANDS; ++o)
    if (o != G && has(row, o) && !row.view[o].contiguous && !rows.dense)
      return refuse(row, "a table that takes a gradient of rows must be contiguous", PyExc_TypeError);
  rows.height = p.shape[0];
  rows.width = rows.height ? row.count / rows.height : 0;
  const View &indices = rows.indices, &values = rows.values, &last = rows.last;
  if (!rows.all && (!indices.on_cpu() || !indices.contiguous || indices.ndim != 1))
    return refuse(row, "row indices must be one-dimensional and contiguous, on the CPU");
  if (!rows.all && indices.dtype != I64 && indices.dtype != I32) return refuse(row, "row indices must be int32 or int64");
  if (rows.has_gradient && !rows.dense) {
    if (!values.on_cpu() || !values.contiguous || values.dtype != p.dtype)
      return refuse(row, "the gradient's values must be contiguous, of the parameter's dtype, on the CPU", PyExc_TypeError);
    if (values.ndim != p.ndim || values.shape[0] != indices.shape[0] ||
        !std::equal(p.shape + 1, p.shape + p.ndim, values.shape + 1))
      return refuse(row, "the gradient's values must be one row of the parameter for each index");
  }
  if (last.data && (last.dtype != I32 || !last.on_cpu() || !last.writable || !last.contiguous || last.count() != rows.height))
    return refuse(row, "row_step must be one writable int32 for each row");
  int64_t outside = 0;
  char text[256];
  if (!rows.all && !rows.collect(outside)) {
    std::snprintf(text, sizeof text, "row index %" PRId64 ": expected 0 to %" PRId64, outside, rows.height - 1);
    return refuse(row, text, PyExc_IndexError);
  }
  for (int64_t u = 0; last.data && u < rows.count(); ++u) {
    const int64_t s = rows.last_step(u);
    if (s < rows.start || s > rows.now()) return refuse(row, "its row_step does not belong to the steps since then");
    if (!rows.strict || s == rows.now()) continue;
    std::snprintf(text, sizeof text, "row %" PRId64 " moves while it is not touched, and was last brought up to date at step %"
                  PRId64 " of %" PRId64 ": attach() the embedding, or call catch_up() for rows before they are read",
                  rows.row(u), s, rows.now());
    return refuse(row, text);
  }
  row.count = rows.count() * rows.width;
  return true;
}

// Where a step's memory is: on the CPU, or on one other device, and with it the step counters or not.
enum Place { HERE, ELSEWHERE, COUNTED_THERE };

// Everything that must hold before a row may be written, by the loops here or by somebody else where its memory is.
bool check(Row& row, Place place) {
  const bool elsewhere = place != HERE;
  const Dtype dtype = row.view[P].dtype, state = row.view[V].dtype;
  if (dtype >= UNKNOWN)
    return refuse(row, "expected float16, bfloat16, float32 or float64", PyExc_TypeError);
  bool same_layout = true;
  for (int o = P; o < OPERANDS; ++o) {
    if (!has(row, o) || (o == G && row.rows && !row.rows->dense)) continue;
    const View& a = row.view[o];
    if ((elsewhere ? a.device != row.view[P].device : !a.on_cpu()) || (!a.data && a.count()))
      return refuse(row, elsewhere ? "parameter, gradient and state must have their memory on the same device"
                                   : "parameter, gradient and state must have their memory on the CPU", PyExc_TypeError);
    if (o == V && row.flags & ROWWISE && row.view[P].ndim > 1 && (row.view[P].count() || !a.same_shape(row.view[P]))) {
      if (!a.one_a_row(row.view[P])) return refuse(row, "its square_avg must be one number for each row");
    } else if (!a.same_shape(row.view[P])) {
      return refuse(row, "gradient and state must have the parameter's shape");
    }
    if (a.dtype != (o < V ? dtype : state))
      return o < V ? refuse(row, "the gradient must have the parameter's dtype", PyExc_TypeError)
                   : refuse(row, "all state must have one dtype");
    if (o != G && !a.writable) return refuse(row, "parameter or state is read-only");
    same_layout &= a.same_layout(row.view[P]);
  }
  if (state != (dtype == F64 ? F64 : F32) && (state != BF16 || dtype == F64))
    return refuse(row, "state must be float32 or bfloat16, or float64 for a float64 parameter", PyExc_TypeError);
  if (row.flags & STOCHASTIC && dtype == F16)
    return refuse(row, "stochastic_rounding is for bfloat16; float16 parameters cannot have it");
  row.count = row.view[P].count();
  row.dense = false;
  for (int o = P; o < OPERANDS; ++o) {
    if (o == G || !has(row, o)) continue;
    const Packing how = packing(row.view[o]);
    if (how == OVERLAPPING) return refuse(row, "several elements of the parameter or its state share memory");
    // Random numbers belong to an element's place in row-major order, wherever it lies in memory.
    if (o == P) row.dense = same_layout && how == DENSE && (row.view[P].contiguous || !row.dithers());
    if (o == V && row.is_rowwise()) row.dense = false;
  }
  if (elsewhere && (!row.dense || row.rows || row.flags & ERROR))
    return refuse(row, "not for a kernel on another device", PyExc_TypeError);
  if (row.rows && !check_rows(row)) return false;
  row.direct = row.dense && !is_narrow(dtype) && !is_narrow(state);
  const View& c = row.counter;
  if (place == COUNTED_THERE && c.device == row.view[P].device && c.count() == 1) return row.counts = false, true;
  if (!c.on_cpu() || !c.writable || c.count() != 1 || (c.dtype != F32 && c.dtype != F64))
    return refuse(row, "the state's step must be one writable float32 or float64 on the CPU");
  return true;
}

double counted(const View& c) {
  return c.dtype == F32 ? double(read<float>(c.data, 0)) : read<double>(c.data, 0);
}

void count(const View& c, double t) {
  if (c.dtype == F32)
    write(c.data, 0, float(t));
  else
    write(c.data, 0, t);
}

const Coefficients* unpack(Table& table, PyObject* packed, bool rprop, bool averages) {
  char* bytes = PyBytes_AsString(packed);
  if (!bytes) return nullptr;
  Coefficients k{};
  const size_t size = rprop ? sizeof k.rprop64 : sizeof k.f64;
  if (PyBytes_Size(packed) != Py_ssize_t(size + averages * sizeof k.rate)) {
    PyErr_SetString(PyExc_ValueError, "scalars: expected one double for each name in SCALARS, or RPROP_SCALARS, and a rate");
    return nullptr;
  }
  std::memcpy(rprop ? static_cast<void*>(&k.rprop64) : &k.f64, bytes, size);
  if (averages) std::memcpy(&k.rate, bytes + size, sizeof k.rate);
#define RMSPROP_ROUND(name) k.f32.name = float(k.f64.name);
  RMSPROP_SCALARS(RMSPROP_ROUND)
#undef RMSPROP_ROUND
#define RMSPROP_ROUND(name) k.rprop32.name = float(k.rprop64.name);
  RMSPROP_RPROP_SCALARS(RMSPROP_ROUND)
#undef RMSPROP_ROUND
  table.coefficients.push_back(k);
  return &table.coefficients.back();
}

bool read_number(PyObject* object, const char* name, int64_t& out) {
  PyObject* value = PyObject_GetAttrString(object, name);
  if (value) out = PyLong_AsLongLong(value);
  Py_XDECREF(value);
  return !PyErr_Occurred();
}

bool read_doubles(Table& table, PyObject* object, const char* name, int64_t length, const double*& out) {
  PyObject* value = PyObject_GetAttrString(object, name);
  View view;
  if (value && value != Py_None && table.reader.read(value, view)) {
    if (view.dtype == F64 && view.contiguous && view.count() > length)
      out = reinterpret_cast<double*>(view.data);
    else
      PyErr_Format(PyExc_ValueError, "missed.%s: expected a float64 for each step", name);
  }
  Py_XDECREF(value);
  return !PyErr_Occurred();
}

// A gradient of rows: `Rows` in kernels/rows.py.
bool read_rows(Table& table, PyObject* given, Row& row) {
  PyObject *indices, *values, *last, *missed;
  table.touched.emplace_back();
  Rows& rows = *(row.rows = &table.touched.back());
  int strict;
  if (!PyArg_ParseTuple(given, "OOOOp", &indices, &values, &last, &missed, &strict)) return false;
  rows.strict = strict;
  rows.all = indices == Py_None;
  rows.has_gradient = values != Py_None;
  if (rows.all && rows.has_gradient) return refuse(row, "values without indices");
  return (rows.all || table.reader.read(indices, rows.indices)) &&
         (!rows.has_gradient || table.reader.read(values, rows.values)) &&
         (last == Py_None || (table.reader.read(last, rows.last) && read_number(missed, "start", rows.start) &&
                              read_number(missed, "length", rows.length) &&
                              read_doubles(table, missed, "retained", rows.length, rows.retained) &&
                              read_doubles(table, missed, "pull", rows.length, rows.pull)));
}

// The scalars of one group: the same for every step number, or asked for once for each that occurs.
class GroupScalars {
 public:
  GroupScalars(Table& table, PyObject* source, int flags) : table_(table), source_(source), flags_(flags) {}

  const Coefficients* at(double t) {
    if (last_ && (fixed_ || t == last_t_)) return last_;
    fixed_ = PyBytes_Check(source_);
    PyObject* packed = fixed_ ? Py_NewRef(source_) : PyObject_CallFunction(source_, "L", static_cast<long long>(t));
    if (!packed) return nullptr;
    last_ = unpack(table_, packed, flags_ & RPROP, flags_ & AVERAGE);
    last_t_ = t;
    Py_DECREF(packed);
    return last_;
  }

 private:
  Table& table_;
  PyObject* source_;
  const Coefficients* last_ = nullptr;
  double last_t_ = 0;
  bool fixed_ = false;
  int flags_;
};

bool add_group(Table& table, PyObject* group, int64_t number, Place place) {
  PyObject *source, *params, *grads, *states, *names, *offsets = Py_None;
  unsigned long long seed = 0;
  int flags;
  table.reader.keep(group);
  if (!PyArg_ParseTuple(group, "OiO!O!O!O|KO", &source, &flags, &PyList_Type, &params, &PyList_Type, &grads, &PyList_Type,
                        &states, &names, &seed, &offsets))
    return false;
  GroupScalars scalars(table, source, flags);
  const Py_ssize_t size = PyList_Size(params);
  if (PyList_Size(grads) != size || PyList_Size(states) != size) {
    PyErr_SetString(PyExc_ValueError, "params, grads and states: expected lists of equal length");
    return false;
  }
  table.rows.reserve(table.rows.size() + size_t(size));
  table.reader.reserve(size_t(size) * (OPERANDS + 2));
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject *p = PyList_GetItem(params, i), *g = PyList_GetItem(grads, i), *state = PyList_GetItem(states, i);
    if (!p || !g || !state) return false;
    if (g == Py_None) continue;
    table.rows.emplace_back();
    Row& row = table.rows.back();
    row.group = number;
    row.index = i;
    if (names != Py_None) {
      if (!(row.name = PyList_GetItem(names, i))) return false;
      table.reader.keep(row.name);
    }
    row.flags = flags;
    row.offset = offsets == Py_None ? 0 : PyLong_AsUnsignedLongLong(PyList_GetItem(offsets, i));
    if (PyErr_Occurred()) return false;
    table.reader.keep(state);
    if (!table.reader.read(p, row.view[P])) return false;
    if (!(PyTuple_Check(g) ? read_rows(table, g, row) : table.reader.read(g, row.view[G]))) return false;
    for (int o = V; o < OPERANDS; ++o)
      if (has(row, o) && !read_slot(table, row, state, slot_key(row, o), row.view[o])) return false;
    if (row.rows && flags & AVERAGE) return refuse(row, "averaged weights need a dense gradient");
    if (row.is_rowwise() && !row.rows) {
      table.touched.emplace_back();
      row.rows = &table.touched.back();
      row.rows->all = row.rows->dense = true;
    }
    if (!read_slot(table, row, state, STEP, row.counter) || !check(row, place)) return false;
    const double t = (row.counts ? counted(row.counter) : 0) + 1;
    if (!(t >= 1 && t < 9e15)) return refuse(row, "the state's step must be at least 0");
    if (!(row.k = scalars.at(t))) return false;
    row.key = mix(mix(seed) + uint64_t(t));
    if (!row.rows) continue;
    if (flags & RPROP) return refuse(row, "Rprop takes no gradient of rows");
    Rows& rows = *row.rows;
    rows.beta = row.k->f64.beta, rows.mu = row.k->f64.mu;
    if (!rows.has_gradient) row.key = mix(mix(~seed) + uint64_t(t));  // not the numbers of the step that follows
    if (rows.catches_up() && rows.now() != int64_t(t) - 1)
      return refuse(row, "its step does not belong to its row_step");
  }
  return true;
}

// What the rows did: a tuple a row, in the order of the gradients that are not None.
PyObject* report(const std::vector<Row>& rows) {
  PyObject* list = PyList_New(0);
  for (const Row& row : rows) {
    const Sums& s = row.sums;
    PyObject* item = Py_BuildValue("(dddLLL)", s.gradient, s.update, s.weight, static_cast<long long>(s.dominated),
                                   static_cast<long long>(s.skipped), static_cast<long long>(row.count));
    const bool added = list && item && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    if (added) continue;
    Py_XDECREF(list);
    return nullptr;
  }
  return list;
}

PyObject* step(PyObject*, PyObject* args) {
  PyObject* groups;
  int threads, watched = 0;
  if (!PyArg_ParseTuple(args, "O!i|p", &PyList_Type, &groups, &threads, &watched)) return nullptr;
  try {
    Table table;
    for (Py_ssize_t j = 0; j < PyList_Size(groups); ++j)
      if (!add_group(table, PyList_GetItem(groups, j), j, HERE)) return nullptr;
    int64_t refused = 0, skipped = 0;
    Py_BEGIN_ALLOW_THREADS
    refused = run(table.rows, threads, check_piece);
    if (!refused) {
      skipped = run(table.rows, threads, watched ? watched_piece : step_piece);
      for (const Row& row : table.rows) {
        const bool steps = !row.rows || row.rows->has_gradient;
        if (row.rows) row.rows->taken(steps);
        if (steps) count(row.counter, counted(row.counter) + 1);
      }
    }
    Py_END_ALLOW_THREADS
    if (!refused) return watched ? report(table.rows) : PyLong_FromLongLong(skipped);
    for (const Row& row : table.rows)
      if (run({row}, 1, check_piece)) {
        refuse(row, "its gradient, squared, is not finite", PyExc_FloatingPointError);
        return nullptr;
      }
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  return nullptr;
}

// What a kernel on another device has to know of a row; addresses are 0 where there is no such operand.
struct Entry {
  int64_t at[OPERANDS], count, offset, key, scalars, dtype, state, flags, device;
};
constexpr size_t SCALARS_OF_ENTRY = sizeof(Scalars<double>) / sizeof(double) + 1;  // the last one: the rate of the average

PyObject* launch(PyObject*, PyObject* args) {
  PyObject *groups, *kernel;
  int counted_there = 0;
  if (!PyArg_ParseTuple(args, "O!O|p", &PyList_Type, &groups, &kernel, &counted_there)) return nullptr;
  try {
    Table table;
    for (Py_ssize_t j = 0; j < PyList_Size(groups); ++j)
      if (!add_group(table, PyList_GetItem(groups, j), j, counted_there ? COUNTED_THERE : ELSEWHERE)) return nullptr;
    if (table.rows.empty()) return PyLong_FromLong(0);
    std::vector<Entry> entries(table.rows.size());
    std::vector<double> scalars;
    const Coefficients* last = nullptr;
    for (size_t i = 0; i < entries.size(); ++i) {
      const Row& row = table.rows[i];
      if (row.k != last) {
        last = row.k;
        scalars.resize(scalars.size() + SCALARS_OF_ENTRY);
        double* out = &scalars[scalars.size() - SCALARS_OF_ENTRY];
        if (row.flags & RPROP)
          std::memcpy(out, &last->rprop64, sizeof last->rprop64);
        else
          std::memcpy(out, &last->f64, sizeof last->f64);
        out[SCALARS_OF_ENTRY - 1] = last->rate;
      }
      const View& p = row.view[P];
      const int64_t key = row.dithers() ? int64_t(row.key) : 0;  // changes with each step
      const int64_t set = int64_t(scalars.size() / SCALARS_OF_ENTRY) - 1;
      entries[i] = {{}, row.count, int64_t(row.offset), key, set, p.dtype, row.view[V].dtype, row.flags, p.device};
      for (int o = P; o < OPERANDS; ++o)
        if (has(row, o)) entries[i].at[o] = int64_t(row.view[o].data);
    }
    PyObject* result = PyObject_CallFunction(kernel, "y#y#", entries.data(), Py_ssize_t(entries.size() * sizeof(Entry)),
                                             scalars.data(), Py_ssize_t(scalars.size() * sizeof(double)));
    for (const Row& row : table.rows)
      if (result && row.counts) count(row.counter, counted(row.counter) + 1);
    return result;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyObject* supports_v3(PyObject*, PyObject*) {
#if defined(__x86_64__) && defined(__GNUC__)
  unsigned a, b, c = 0, d, more = 0;
  __get_cpuid(1, &a, &b, &c, &d);
  __get_cpuid(0x80000001, &a, &b, &more, &d);
  __builtin_cpu_init();
  return PyBool_FromLong(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                         __builtin_cpu_supports("bmi2") && c & bit_F16C && c & bit_MOVBE && more & bit_LZCNT);
#else
  return PyBool_FromLong(0);
#endif
}

int execute(PyObject* module) {
  for (int k = 0; k < KEY_COUNT; ++k)
    if (!(keys[k] = PyUnicode_InternFromString(KEYS[k]))) return -1;
#define RMSPROP_NAME(name) #name " "
  if (PyModule_AddStringConstant(module, "RPROP_SCALARS", RMSPROP_RPROP_SCALARS(RMSPROP_NAME))) return -1;
  return PyModule_AddStringConstant(module, "SCALARS", RMSPROP_SCALARS(RMSPROP_NAME));
#undef RMSPROP_NAME
}

PyMethodDef methods[] = {
    {"step", step, METH_VARARGS,
     "step(groups, threads, watched=False): one step for all groups, each (scalars, flags, params, grads, states, names or\n"
     "None, seed, offsets or None); the number of entries skipped, or if watched a list of (sums of squares of gradient,\n"
     "update, weight; counts of entries where epsilon dominates, skipped, all), one for each gradient."},
    {"launch", launch, METH_VARARGS,
     "launch(groups, kernel, counted_there=False): the same for memory of any device: when all is checked, kernel(rows,\n"
     "scalars) makes the step, from an `Entry` for each gradient that is not None and 17 doubles for each `scalars` that\n"
     "occurs. Returns what it returns. counted_there: step counters may be on that device too, and move in the kernel."},
    {"supports_v3", supports_v3, METH_NOARGS, "Whether this processor runs code for x86-64-v3."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)}, {0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, 0, methods, slots, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace rmsprop

PyMODINIT_FUNC RMSPROP_INIT() { return PyModuleDef_Init(&rmsprop::definition); }
