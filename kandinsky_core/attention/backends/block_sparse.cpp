// Block-sparse attention on a CPU: softmax(q k^T / sqrt(K)) v over the kept blocks alone.
//
// A thread takes one block of queries at a time, the heaviest first, and one kept block of keys
// after the other. Scores lie transposed, a column for each query: maximum and sum of the softmax
// run down the rows in whole vectors, and keys are read as they are stored. Maximum, sum and result
// are running ones, so that nothing of the size of a row is ever held.
// fp32 products are a small kernel of our own. bf16 products run through ATen's batch-reduce GEMM
// where the processor has units that it packs for (AMX), and in fp32 elsewhere.
//
// Letters: R blocks of queries over batch and heads, M tokens per block, K head dim.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "OpenMP is off: ATen would run everything on one thread"
#endif

namespace {

using at::BFloat16;
using at::native::cpublas::brgemm;
using Vec = at::vec::Vectorized<float>;
using Int = at::vec::Vectorized<int32_t>;

constexpr int64_t kPacked = 64;  // most columns of an operand that brgemm takes packed
constexpr float kSlack = 8.f;

// What one thread keeps between blocks of queries; all of it fits the nearer caches.
template <typename T>
struct Workspace {
  std::vector<T> queries;                    // (K, M), as the second operand of a product
  std::vector<float> scores;                 // (M keys, M queries)
  std::vector<int32_t> weights;              // the same in bf16, two keys a word; unused for fp32
  std::vector<float> out;                    // (M, K); for bf16 (K, M)
  std::vector<float> maxima, sums, factors;  // (M)
  Workspace(int64_t m, int64_t k)
      : queries(k * m), scores(m * m), weights(std::is_same_v<T, float> ? 0 : m * m / 2), out(k * m),
        maxima(m), sums(m), factors(m) {}
};

// A tile of c (rows, columns) = a b, or c + a b: R rows, V vectors. Element (i, p) of a lies at
// i * row_step + p * depth_step; b and c have `width` columns.
template <int R, int V, bool add>
inline void tile(const float* a, int64_t row_step, int64_t depth_step, const float* b, float* c,
                 int64_t width, int64_t depth) {
  Vec sums[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j)
      sums[i][j] = add ? Vec::loadu(c + i * width + j * Vec::size()) : Vec(0.f);
  for (int64_t p = 0; p < depth; ++p) {
    Vec row[V];
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) row[j] = Vec::loadu(b + p * width + j * Vec::size());
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vec factor(a[i * row_step + p * depth_step]);
#pragma GCC unroll 16
      for (int j = 0; j < V; ++j) sums[i][j] = at::vec::fmadd(factor, row[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) sums[i][j].store(c + i * width + j * Vec::size());
}

// Not inlined: the loops above need every register.
template <int R, int V, bool add>
C10_NOINLINE void product(const float* a, int64_t row_step, int64_t depth_step, const float* b,
                          float* c, int64_t rows, int64_t width, int64_t depth) {
  for (int64_t j = 0; j < width; j += V * Vec::size())
    for (int64_t i = 0; i < rows; i += R)
      tile<R, V, add>(a + i * row_step, row_step, depth_step, b + j, c + i * width + j, width, depth);
}

// rows and width are multiples of 16
template <bool add>
void multiply(const float* a, int64_t row_step, int64_t depth_step, const float* b, float* c,
              int64_t rows, int64_t width, int64_t depth) {
  constexpr int n = Vec::size();
  constexpr int rows_at_once = n == 16 ? 4 : 2;  // of four vectors each: AVX2 has half the registers
  if (width % (4 * n) == 0)
    product<rows_at_once, 4, add>(a, row_step, depth_step, b, c, rows, width, depth);
  else if (width % (2 * n) == 0)
    product<4, 2, add>(a, row_step, depth_step, b, c, rows, width, depth);
  else
    product<8, 1, add>(a, row_step, depth_step, b, c, rows, width, depth);
}

// exp(x) for x < 88: 2^n times a polynomial (of least relative error) of what is left of x / ln 2.
// To 1e-7 of the result, and to 1e-4 where it is rounded to bf16 afterwards.
template <typename T>
inline Vec exponential(const Vec& x) {
  const Vec exponent = at::vec::maximum(x * Vec(1.44269504f), Vec(-126.f));
  const Vec magic(12582912.f);  // adding 1.5 * 2^23 rounds to an integer, which lies in the low bits
  const Vec shifted = exponent + magic, rest = exponent - (shifted - magic);
  Vec result;
  if constexpr (std::is_same_v<T, float>) {
    result = at::vec::fmadd(Vec(1.32647074e-3f), rest, Vec(9.67151595e-3f));
    result = at::vec::fmadd(result, rest, Vec(5.55073381e-2f));
    result = at::vec::fmadd(result, rest, Vec(2.4022242e-1f));
    result = at::vec::fmadd(result, rest, Vec(6.93146978e-1f));
  } else {
    result = at::vec::fmadd(Vec(5.50087722e-2f), rest, Vec(2.42211099e-1f));
    result = at::vec::fmadd(result, rest, Vec(6.93282963e-1f));
  }
  result = at::vec::fmadd(result, rest, Vec(1.f));
  return at::vec::cast<float>(at::vec::cast<int32_t>(result) + (at::vec::cast<int32_t>(shifted) << Int(23)));
}

// Takes in the maxima of new scores: what the sums and the result so far are multiplied by goes to
// `factors`. Returns whether any of that is not 1. A maximum that is exceeded by less than kSlack
// stays, because weights up to exp(kSlack) are as exact: so the result is seldom multiplied.
template <typename T>
bool raise_maxima(Workspace<T>& work, int64_t m, float scale) {
  bool changed = false;
  for (int64_t j = 0; j < m; j += Vec::size()) {
    const float* column = work.scores.data() + j;
    Vec best = Vec::loadu(column), other = Vec::loadu(column + m);
    for (int64_t i = 2; i < m; i += 2) {
      best = at::vec::maximum(best, Vec::loadu(column + i * m));
      other = at::vec::maximum(other, Vec::loadu(column + (i + 1) * m));
    }
    best = at::vec::maximum(best, other) * Vec(scale);
    const Vec before = Vec::loadu(work.maxima.data() + j);
    const Vec after = Vec::blendv(before, best, best > before + Vec(kSlack));
    const Vec factor = exponential<float>(before - after);
    after.store(work.maxima.data() + j);
    factor.store(work.factors.data() + j);
    (Vec::loadu(work.sums.data() + j) * factor).store(work.sums.data() + j);
    changed |= (factor - Vec(1.f)).zero_mask() != (1 << Vec::size()) - 1;
  }
  return changed;
}

// scores -> exp(scale * scores - maxima), added up in the sums. For bf16 they go to `weights`, two
// rows as one of words: the first in the low half, the second in the high, both rounded.
template <typename T>
void exponentiate(Workspace<T>& work, int64_t m, float scale) {
  const Vec scales(scale);
  for (int64_t j = 0; j < m; j += Vec::size()) {
    const Vec shift = Vec::loadu(work.maxima.data() + j);
    Vec sum = Vec::loadu(work.sums.data() + j), other(0.f);
    const int64_t packed = j / kPacked * kPacked, columns = std::min(kPacked, m - packed);
    int32_t* words = work.weights.data() + packed * m / 2 + j - packed;
    for (int64_t i = 0; i < m; i += 2) {
      float* row = work.scores.data() + i * m + j;
      const Vec low = exponential<T>(at::vec::fmsub(Vec::loadu(row), scales, shift));
      const Vec high = exponential<T>(at::vec::fmsub(Vec::loadu(row + m), scales, shift));
      sum = sum + low;
      other = other + high;
      if constexpr (std::is_same_v<T, float>) {
        low.store(row);
        high.store(row + m);
      } else {
        const Int half(0x8000), upper(static_cast<int32_t>(0xffff0000));
        const Int first = at::vec::cast<int32_t>(low) + half, second = at::vec::cast<int32_t>(high) + half;
        ((first >> Int(16)) | (second & upper)).store(words + i / 2 * columns);
      }
    }
    (sum + other).store(work.sums.data() + j);
  }
}

// Multiplies the result so far by the factors of its queries.
template <typename T>
void fade(Workspace<T>& work, int64_t m, int64_t k) {
  float* out = work.out.data();
  const float* factors = work.factors.data();
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t d = 0; d < k; d += Vec::size())
        (Vec::loadu(out + i * k + d) * Vec(factors[i])).store(out + i * k + d);
  } else {
    for (int64_t d = 0; d < k; ++d)
      for (int64_t i = 0; i < m; i += Vec::size())
        (Vec::loadu(out + d * m + i) * Vec::loadu(factors + i)).store(out + d * m + i);
  }
}

// Asks for memory that is soon read, so that it is in the cache by then.
template <typename T>
void fetch(const T* data, int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += line) __builtin_prefetch(data + i, 0, 2);
}

// (rows, columns), rows `step` apart -> (columns, rows)
template <typename Word>
void transpose(const Word* in, int64_t step, Word* out, int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i) out[j * rows + i] = in[i * step + j];
}

// One block of queries q (M, K); keys (R, M, K); values (R, M, K), for bf16 (R, K, M).
template <typename T>
void attend_row(Workspace<T>& work, const T* q, const T* keys, const T* values, T* result,
                const int32_t* columns, int64_t count, int64_t m, int64_t k) {
  const float scale = 1.f / std::sqrt(static_cast<float>(k));
  std::fill(work.maxima.begin(), work.maxima.end(), -std::numeric_limits<float>::infinity());
  std::fill(work.sums.begin(), work.sums.end(), 0.f);
  std::fill(work.out.begin(), work.out.end(), 0.f);
  T* queries = work.queries.data();
  float *scores = work.scores.data(), *out = work.out.data();
  if constexpr (std::is_same_v<T, float>)
    transpose(q, k, queries, m, k);
  else  // packed operands hold two numbers of a column in a word
    for (int64_t j = 0; j < m; j += kPacked)
      transpose(reinterpret_cast<const int32_t*>(q + j * k), k / 2,
                reinterpret_cast<int32_t*>(queries + j * k), std::min(kPacked, m - j), k / 2);
  for (int64_t block = 0; block < count; ++block) {
    const T *key = keys + columns[block] * m * k, *value = values + columns[block] * m * k;
    if (block + 1 < count) {
      fetch(keys + columns[block + 1] * m * k, m * k);
      fetch(values + columns[block + 1] * m * k, m * k);
    }
    if constexpr (std::is_same_v<T, float>) {
      multiply<false>(key, k, 1, queries, scores, m, m, k);
    } else {
      for (int64_t j = 0; j < m; j += kPacked) {
        const int64_t width = std::min(kPacked, m - j);
        brgemm(m, width, k, k, width, m, false, key, queries + j * k, scores + j, true);
      }
    }
    if (raise_maxima(work, m, scale) && block > 0) fade(work, m, k);
    exponentiate(work, m, scale);
    if constexpr (std::is_same_v<T, float>) {
      multiply<true>(scores, 1, m, value, out, m, k, m);
    } else {
      const T* weights = reinterpret_cast<const T*>(work.weights.data());
      for (int64_t j = 0; j < m; j += kPacked) {
        const int64_t width = std::min(kPacked, m - j);
        brgemm(k, width, m, m, width, m, true, value, weights + j * m, out + j, true);
      }
    }
  }
  for (int64_t i = 0; i < m; ++i) work.factors[i] = count > 0 ? 1.f / work.sums[i] : 0.f;
  fade(work, m, k);
  if constexpr (std::is_same_v<T, float>)
    std::copy_n(out, m * k, result);
  else
    for (int64_t i = 0; i < m; ++i)
      for (int64_t d = 0; d < k; ++d) result[i * k + d] = static_cast<T>(out[d * m + i]);
}

template <typename T>
at::Tensor run(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& order,
               const at::Tensor& starts, const at::Tensor& columns) {
  const int64_t rows = q.size(0), m = q.size(1), dim = q.size(2);
  at::Tensor values = v;
  if constexpr (!std::is_same_v<T, float>) {
    values = at::empty_like(v);
    const int16_t* in = reinterpret_cast<const int16_t*>(v.const_data_ptr<T>());
    int16_t* out = reinterpret_cast<int16_t*>(values.data_ptr<T>());
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) transpose(in + r * m * dim, dim, out + r * m * dim, m, dim);
    });
  }
  at::Tensor result = at::empty_like(q);
  const T* q_data = q.const_data_ptr<T>();
  const T* k_data = k.const_data_ptr<T>();
  const T* v_data = values.const_data_ptr<T>();
  const int64_t* order_data = order.const_data_ptr<int64_t>();
  const int64_t* starts_data = starts.const_data_ptr<int64_t>();
  const int32_t* columns_data = columns.const_data_ptr<int32_t>();
  T* out = result.data_ptr<T>();
  // threads take the next row when they are done: equal shares would wait for a disturbed one
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), rows);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Workspace<T> work(m, dim);
    for (int64_t at = next++; at < rows; at = next++) {
      const int64_t row = order_data[at], begin = starts_data[row];
      attend_row<T>(work, q_data + row * m * dim, k_data, v_data, out + row * m * dim,
                    columns_data + begin, starts_data[row + 1] - begin, m, dim);
    }
    if constexpr (!std::is_same_v<T, float>) at::native::cpublas::brgemm_release(true);
  });
  return result;
}

// q, k, v (R, M, K) contiguous, fp32 or bf16, M and K multiples of 16; order (R,) int64: heaviest
// rows first; starts (R + 1,) int64 and columns int32: the kept blocks of each row. Rows without
// any give zeros.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& order,
                  const at::Tensor& starts, const at::Tensor& columns) {
  if (q.scalar_type() == at::kFloat) return run<float>(q, k, v, order, starts, columns);
  TORCH_CHECK(q.scalar_type() == at::kBFloat16, "expected fp32 or bf16, got ", q.scalar_type());
  if (at::native::cpublas::could_pack(at::kBFloat16))
    return run<BFloat16>(q, k, v, order, starts, columns);
  return run<float>(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), order, starts, columns)
      .to(at::kBFloat16);
}

}  // namespace

TORCH_LIBRARY(kandinsky_core, library) {
  library.def("block_sparse(Tensor q, Tensor k, Tensor v, Tensor order, Tensor starts, Tensor columns) -> Tensor");
}

TORCH_LIBRARY_IMPL(kandinsky_core, CPU, library) { library.impl("block_sparse", attend); }
