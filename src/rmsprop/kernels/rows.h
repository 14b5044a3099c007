// A gradient that touches some rows of a table: which rows, its sums over duplicates, and the steps the rows have missed.
//
// `catch_up` transcribes the function of that name in rmsprop/missed.py, and `Rows::missed` its `Missed.factors`.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "formats.h"
#include "rule.h"
#include "table.h"

namespace rmsprop {

struct Factors {
  double fade, rest, kept, lost, moved;
};

template <class S, int FLAGS>
void catch_up(char* pa, char* va, char* ma, char* ba, int64_t n, const Factors& k) {
  const S tiny = std::numeric_limits<S>::min();
  const S fade = S(k.fade), rest = S(k.rest), kept = S(k.kept), lost = S(k.lost), moved = S(k.moved);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    S v = read<S>(va, i);
    if (FLAGS & CENTERED) {
      const S m = read<S>(ma, i);
      v = fade * (v + rest * m * m);
      write(ma, i, flush<S>(m - rest * m));
    } else {
      v = fade * v;
    }
    write(va, i, v < tiny ? S(0) : v);
    if (!(FLAGS & (DECAY | MOMENTUM))) continue;
    S p = read<S>(pa, i);
    if (FLAGS & DECAY) p = p - lost * p;
    if (FLAGS & MOMENTUM) {
      const S b = read<S>(ba, i);
      p = p - moved * b;
      write(ba, i, flush<S>(kept * b));
    }
    write(pa, i, p);
  }
}

struct Rows {
  int64_t width = 1, height = 0;  // elements of a row, rows of the table
  std::vector<int64_t> touched;   // the rows, each once; all of them where `all`
  std::vector<int64_t> source;    // where in the values the gradient of each begins or, as its complement, where in the sums
  std::vector<char> sums;         // of the gradients of rows that come several times; float or double
  bool all = false, has_gradient = true, strict = false;  // strict: rows that have missed steps are refused
  bool dense = false;             // the gradient is one of the whole parameter, and not in here
  View indices, values, last;  // last: the step that each row has taken last; no data where rows are not made up for
  const double *retained = nullptr, *pull = nullptr;  // `Missed.retained` and `pull`
  int64_t start = 0, length = 0;                      // and its two numbers
  double beta = 0, mu = 0;

  int64_t count() const { return all ? height : int64_t(touched.size()); }
  int64_t row(int64_t unique) const { return all ? unique : touched[size_t(unique)]; }
  bool catches_up() const { return last.data; }
  int64_t last_step(int64_t unique) const { return read<int32_t>(last.data, row(unique)); }
  int64_t now() const { return start + length; }  // the step that rows are brought up to

  // All of these rows are up to date now, after one more step or not.
  void taken(bool step) const {
    for (int64_t u = 0; last.data && u < count(); ++u) write(last.data, row(u), int32_t(now() + step));
  }

  Factors missed(int64_t s) const {
    const double n = double(now() - s), fade = std::pow(beta, n);
    const double lost = retained ? 1 - retained[length] / retained[s - start] : 0;
    const double moved = pull ? retained[length] * pull[s - start] : 0;
    return {fade, 1 - fade, std::pow(mu, n), lost, moved};
  }

  // Finds each row once, and where its gradient is; false if an index lies outside the table, which is then `outside`.
  bool collect(int64_t& outside) {
    const int64_t n = indices.count();
    int bits = 4;
    while (int64_t(1) << bits < 2 * n) ++bits;
    std::vector<int32_t> slots(size_t(1) << bits, -1);  // open addressing: which of `touched`
    std::vector<int32_t> unique(static_cast<size_t>(n));
    touched.reserve(size_t(n));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t index = indices.dtype == I64 ? read<int64_t>(indices.data, i) : read<int32_t>(indices.data, i);
      if (index < 0 || index >= height) return outside = index, false;
      if (last.data) __builtin_prefetch(last.data + 4 * index, 1);
      size_t at = size_t(uint64_t(index) * 0x9e3779b97f4a7c15 >> (64 - bits));
      while (slots[at] >= 0 && touched[size_t(slots[at])] != index) at = (at + 1) & (slots.size() - 1);
      if (slots[at] < 0) {
        slots[at] = int32_t(touched.size());
        touched.push_back(index);
        source.push_back(i * width);
      }
      unique[size_t(i)] = slots[at];
    }
    if (touched.size() < size_t(n)) (values.dtype == F64 ? add_up<double> : add_up<float>)(*this, unique);
    return true;
  }

  // Where the gradient of a touched row lies, of float or double values.
  const char* gradient_at(int64_t place) const {
    const int64_t first = source[size_t(place)], size = itemsize(values.dtype);
    return first < 0 ? sums.data() + ~first * size : values.data + first * size;
  }

  // Copies part of the gradient of a touched row, from its j-th element on.
  void gradient(int64_t place, int64_t j, int64_t n, char* out) const {
    const int64_t first = source[size_t(place)], size = values.dtype == F64 ? 8 : 4;
    if (first < 0)
      std::memcpy(out, sums.data() + (~first + j) * size, size_t(n * size));
    else
      load(values.dtype, values.data + (first + j) * itemsize(values.dtype), out, n);
  }

 private:
  // Sums the gradients of rows that come several times, in the order they come in.
  template <class S>
  static void add_up(Rows& rows, const std::vector<int32_t>& unique) {
    const int64_t width = rows.width;
    std::vector<S> one(static_cast<size_t>(width));
    char* const next = reinterpret_cast<char*>(one.data());
    for (size_t i = 0; rows.values.data && i < unique.size(); ++i) {
      int64_t& source = rows.source[size_t(unique[i])];
      if (source == int64_t(i) * width) continue;  // the first of its row
      if (source >= 0) {
        const size_t end = rows.sums.size();
        rows.sums.resize(end + size_t(width) * sizeof(S));
        rows.gradient(unique[i], 0, width, rows.sums.data() + end);
        source = ~int64_t(end / sizeof(S));
      }
      load(rows.values.dtype, rows.values.data + int64_t(i) * width * itemsize(rows.values.dtype), next, width);
      char* const sum = rows.sums.data() + ~source * int64_t(sizeof(S));
      for (int64_t j = 0; j < width; ++j) write(sum, j, read<S>(sum, j) + one[size_t(j)]);
    }
  }
};

// `Rows::missed`, remembered: many rows have missed the same steps.
class Memory {
 public:
  explicit Memory(const Rows& rows) : rows_(rows) { std::fill(known_, known_ + SIZE, -1); }

  const Factors& at(int64_t s) {
    const size_t i = size_t(s) % SIZE;
    if (known_[i] != s) factors_[i] = rows_.missed(known_[i] = s);
    return factors_[i];
  }

 private:
  static constexpr size_t SIZE = 512;
  const Rows& rows_;
  int64_t known_[SIZE];
  Factors factors_[SIZE];
};

}  // namespace rmsprop
