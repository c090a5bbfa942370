// Block-sparse attention on a CPU: softmax(q k^T / sqrt(K)) v over the kept blocks alone.
//
// A thread takes one block of queries at a time, the heaviest first. Scores are made for a few
// kept blocks at once and folded into a running maximum, sum and output, so that nothing of the
// size of a row is ever held. Products run through ATen's batch-reduce GEMM, on bf16 units where
// the processor has them.
//
// Letters: R blocks of queries over batch and heads, M tokens per block, K head dim, n kept blocks.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

namespace {

using at::native::cpublas::brgemm;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t kColumnsAtOnce = 512;  // scores of a row held at a time: they stay in the cache

float largest(const float* row, int64_t length) {
  Vec best(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + Vec::size() <= length; i += Vec::size()) best = at::vec::maximum(best, Vec::loadu(row + i));
  float result = at::vec::vec_reduce_all<float>(
      [](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, best);
  for (; i < length; ++i) result = std::max(result, row[i]);
  return result;
}

// row[i] = exp(scale * row[i] - shift); returns their sum
float exponentiate(float* row, int64_t length, float scale, float shift) {
  const Vec scales(scale), shifts(shift);
  Vec sums(0.f);
  int64_t i = 0;
  for (; i + Vec::size() <= length; i += Vec::size()) {
    const Vec value = at::vec::fmsub(Vec::loadu(row + i), scales, shifts).exp_u20();
    value.store(row + i);
    sums = sums + value;
  }
  float sum = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, sums);
  for (; i < length; ++i) sum += row[i] = std::exp(scale * row[i] - shift);
  return sum;
}

void multiply(float* row, int64_t length, float factor) {
  const Vec factors(factor);
  int64_t i = 0;
  for (; i + Vec::size() <= length; i += Vec::size()) (Vec::loadu(row + i) * factors).store(row + i);
  for (; i < length; ++i) row[i] *= factor;
}

// What one thread keeps between blocks of queries.
template <typename T>
struct Workspace {
  std::vector<float> scores, sums, maxima, out;
  std::vector<T> weights;  // the scores again, in the dtype of the values; unused for fp32
  Workspace(int64_t rows, int64_t columns, int64_t head_dim)
      : scores(rows * columns), sums(rows), maxima(rows), out(rows * head_dim),
        weights(std::is_same_v<T, float> ? 0 : rows * columns) {}
};

template <typename T>
const T* weights_of(Workspace<T>& work, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    return work.scores.data();
  } else {
    at::vec::convert(work.scores.data(), work.weights.data(), count);
    return work.weights.data();
  }
}

// One block of queries q (M, K); keys (R, K, M) and values (R, M, K) as brgemm wants them.
template <typename T>
void attend_row(Workspace<T>& work, const T* q, const T* keys, const T* values, T* result,
                const int32_t* columns, int64_t count, int64_t m, int64_t k) {
  constexpr bool packed = !std::is_same_v<T, float>;
  const int64_t at_once = std::max<int64_t>(1, kColumnsAtOnce / m);
  const float scale = 1.f / std::sqrt(static_cast<float>(k));
  std::fill(work.maxima.begin(), work.maxima.end(), -std::numeric_limits<float>::infinity());
  std::fill(work.sums.begin(), work.sums.end(), 0.f);
  std::fill(work.out.begin(), work.out.end(), 0.f);
  float* scores = work.scores.data();
  float* out = work.out.data();
  for (int64_t first = 0; first < count; first += at_once) {
    const int64_t blocks = std::min(at_once, count - first), width = blocks * m;
    for (int64_t j = 0; j < blocks; ++j)
      brgemm(m, m, k, k, m, width, false, q, keys + columns[first + j] * k * m, scores + j * m, packed);
    for (int64_t i = 0; i < m; ++i) {
      float* row = scores + i * width;
      const float before = work.maxima[i], after = std::max(before, largest(row, width) * scale);
      const float sum = exponentiate(row, width, scale, after), faded = std::exp(before - after);
      work.sums[i] = work.sums[i] * faded + sum;
      work.maxima[i] = after;
      if (first > 0 && faded != 1.f) multiply(out + i * k, k, faded);
    }
    const T* weights = weights_of(work, m * width);
    for (int64_t j = 0; j < blocks; ++j)
      brgemm(m, k, m, width, k, k, true, weights + j * m, values + columns[first + j] * k * m, out, packed);
  }
  for (int64_t i = 0; i < m && count > 0; ++i) multiply(out + i * k, k, 1.f / work.sums[i]);
  at::vec::convert(out, result, m * k);
}

// x (R, rows, columns) -> the same for brgemm's second operand
template <typename T>
at::Tensor pack(const at::Tensor& x) {
  if constexpr (std::is_same_v<T, float>) {
    return x.contiguous();
  } else {
    const at::Tensor source = x.contiguous();
    at::Tensor result = at::empty_like(source);
    const int64_t rows = source.size(1), columns = source.size(2);
    const T* in = source.const_data_ptr<T>();
    T* out = result.data_ptr<T>();
    at::parallel_for(0, source.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        at::native::cpublas::pack(rows, columns, columns, columns, x.scalar_type(), x.scalar_type(),
                                  in + r * rows * columns, out + r * rows * columns);
    });
    return result;
  }
}

template <typename T>
at::Tensor run(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& order,
               const at::Tensor& starts, const at::Tensor& columns) {
  const int64_t rows = q.size(0), m = q.size(1), dim = q.size(2);
  const at::Tensor keys = pack<T>(k.transpose(1, 2)), values = pack<T>(v);
  at::Tensor result = at::empty_like(q);
  const T* q_data = q.const_data_ptr<T>();
  const T* k_data = keys.const_data_ptr<T>();
  const T* v_data = values.const_data_ptr<T>();
  const int64_t* order_data = order.const_data_ptr<int64_t>();
  const int64_t* starts_data = starts.const_data_ptr<int64_t>();
  const int32_t* columns_data = columns.const_data_ptr<int32_t>();
  T* out = result.data_ptr<T>();
  const int64_t width = std::max(m, kColumnsAtOnce / m * m);
  // threads take the next row when they are done: equal shares would wait for a disturbed one
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), rows);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Workspace<T> work(m, width, dim);
    for (int64_t at = next++; at < rows; at = next++) {
      const int64_t row = order_data[at], begin = starts_data[row];
      attend_row<T>(work, q_data + row * m * dim, k_data, v_data, out + row * m * dim,
                    columns_data + begin, starts_data[row + 1] - begin, m, dim);
    }
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  });
  return result;
}

// q, k, v (R, M, K) contiguous, fp32 or bf16; order (R,) int64: heaviest rows first;
// starts (R + 1,) int64 and columns int32: the kept blocks of each row. Rows without any give zeros.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& order,
                  const at::Tensor& starts, const at::Tensor& columns) {
  if (q.scalar_type() == at::kFloat) return run<float>(q, k, v, order, starts, columns);
  TORCH_CHECK(q.scalar_type() == at::kBFloat16, "expected fp32 or bf16, got ", q.scalar_type());
  if (at::native::cpublas::could_pack(at::kBFloat16))
    return run<at::BFloat16>(q, k, v, order, starts, columns);
  return run<float>(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), order, starts, columns)
      .to(at::kBFloat16);
}

}  // namespace

TORCH_LIBRARY(kandinsky_core, library) {
  library.def("block_sparse(Tensor q, Tensor k, Tensor v, Tensor order, Tensor starts, Tensor columns) -> Tensor");
}

TORCH_LIBRARY_IMPL(kandinsky_core, CPU, library) { library.impl("block_sparse", attend); }
