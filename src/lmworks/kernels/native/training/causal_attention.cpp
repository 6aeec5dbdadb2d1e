// Causal attention inside documents of a packed batch, for training: forward, and backward from the logarithms of its sums.
// Knows no cache and no rule beyond a scale. AVX-512 with BF16 only.
//
// Tiles of 64 queries meet tiles of 64 keys (FlashAttention, arXiv:2205.14135 and 2307.08691); those that the mask hides as a
// whole are never computed. Scores stand as [keys, queries], so that what belongs to a query is a lane: maxima and sums
// need no step across lanes, and weights come out as the right operand of the next product, in bfloat16.
// One task is one document and one head of keys, with all heads of queries that share it, so no two tasks write one place.
#include <cstdint>

#ifdef __AVX512BF16__
#include <cmath>
#include <cstdlib>

#include "team.h"
#include "tile_product.h"

namespace lm {
namespace {

constexpr float HIDDEN = -1e30f;   // stands for minus infinity, and has no NaN in differences
constexpr float NO_SUM = 1e30f;    // logarithm of the sum of a query that is not there: all its weights are 0

struct Heads {
    const Bf16* data;
    int64_t stride;  // between tokens
    const Bf16* at(int64_t token, int head, int dim) const { return data + token * stride + static_cast<int64_t>(head) * dim; }
};

struct Shape {
    const int32_t* cu_seqlens;
    int documents, heads, kv_heads, dim;
    float scale;
    int64_t tokens() const { return cu_seqlens[documents]; }
};

// Memory of one thread, kept from task to task.
class Scratch {
public:
    ~Scratch() { std::free(data_); }
    // Everything that `take` gave before is invalid.
    void reserve(size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        std::free(data_);
        size_ = (bytes + 4095) / 4096 * 4096;
        data_ = static_cast<char*>(std::aligned_alloc(4096, size_));
        if (data_ == nullptr) std::abort();
    }
    template <typename T>
    T* take(size_t count) {
        T* result = reinterpret_cast<T*>(data_ + used_);
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return result;
    }

private:
    char* data_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

thread_local Scratch scratch;

int tiles_of(int length) { return (length + TILE - 1) / TILE; }
int rows_of(int length, int tile) { return length - tile * TILE < TILE ? length - tile * TILE : TILE; }

// Plain [TILE, dim] -> its transposition [dim, TILE], plain.
void transpose_tile(const Bf16* from, int dim, uint32_t* pairs, Bf16* to) {
    pair_rows(from, dim, pairs);
    transpose_words(pairs, TILE / 2, dim, reinterpret_cast<uint32_t*>(to));
}

// [dim, TILE] float -> rows of bfloat16, each column's numbers times `factor`'s lane.
void store_transposed(const float* from, int dim, const float* factor, int rows, Bf16* to, int64_t stride) {
    alignas(64) float block[16 * 16];
    for (int q = 0; q < rows; q += 16)
        for (int d = 0; d < dim; d += 16) {
            transpose_block(reinterpret_cast<const uint32_t*>(from + d * TILE + q), TILE, reinterpret_cast<uint32_t*>(block), 16);
            for (int i = 0; i < 16 && q + i < rows; ++i)
                store16(to + (q + i) * stride + d, _mm512_mul_ps(_mm512_load_ps(block + 16 * i), _mm512_set1_ps(factor[q + i])));
        }
}

// The keys of row `row` that 16 queries from `query` on see, both within one tile of the diagonal.
inline __mmask16 seen(int row, int query) {
    const int hidden = row - query;  // queries before the key
    return hidden <= 0 ? 0xffff : hidden >= 16 ? 0 : static_cast<__mmask16>(0xffffu << hidden);
}

void forward_task(const Shape& shape, Heads query, Heads key, Heads value, int document, int kv_head, Bf16* out, float* log_sums) {
    const int begin = shape.cu_seqlens[document], length = shape.cu_seqlens[document + 1] - begin;
    const int dim = shape.dim, tiles = tiles_of(length), group = shape.heads / shape.kv_heads;
    const size_t tile_size = static_cast<size_t>(TILE) * dim, whole = tiles * tile_size;
    scratch.reserve(2 * (2 * whole + 3 * tile_size) + 4 * (tile_size + TILE * (TILE + TILE / 2 + 4)) + 4096);
    Bf16* keys = scratch.take<Bf16>(whole);
    Bf16* values = scratch.take<Bf16>(whole);  // transposed, tile by tile
    Bf16* rows = scratch.take<Bf16>(tile_size);
    uint32_t* pairs = scratch.take<uint32_t>(tile_size / 2);
    uint32_t* queries = scratch.take<uint32_t>(tile_size / 2);
    float* sums = scratch.take<float>(tile_size);
    float* scores = scratch.take<float>(TILE * TILE);
    uint32_t* weights = scratch.take<uint32_t>(TILE * TILE / 2);
    float* factor = scratch.take<float>(TILE);
    for (int t = 0; t < tiles; ++t) {
        const int64_t token = begin + t * TILE;
        copy_tile(key.at(token, kv_head, dim), key.stride, rows_of(length, t), dim, keys + t * tile_size);
        copy_tile(value.at(token, kv_head, dim), value.stride, rows_of(length, t), dim, rows);
        transpose_tile(rows, dim, pairs, values + t * tile_size);
    }
    const __m512 scale = _mm512_set1_ps(shape.scale * LOG2_E);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
        for (int t = 0; t < tiles; ++t) {
            const int64_t token = begin + t * TILE;
            const int count = rows_of(length, t);
            copy_tile(query.at(token, head, dim), query.stride, count, dim, rows);
            transpose_words(reinterpret_cast<const uint32_t*>(rows), TILE, dim / 2, queries);
            __m512 most[4], total[4];
            for (int c = 0; c < 4; ++c) most[c] = _mm512_set1_ps(HIDDEN), total[c] = _mm512_setzero_ps();
            for (int s = 0; s <= t; ++s) {
                product(keys + s * tile_size, queries, TILE, dim, TILE, scores, false);
                for (int c = 0; c < 4; ++c) {
                    float* column = scores + 16 * c;
                    __m512 highest = most[c];
                    for (int r = 0; r < TILE; ++r) {
                        __m512 x = _mm512_mul_ps(_mm512_loadu_ps(column + r * TILE), scale);
                        if (s == t) x = _mm512_mask_blend_ps(seen(r, 16 * c), _mm512_set1_ps(HIDDEN), x);
                        _mm512_storeu_ps(column + r * TILE, x);
                        highest = _mm512_max_ps(highest, x);
                    }
                    const __m512 shrink = exp2_16(_mm512_sub_ps(most[c], highest));
                    __m512 sum = _mm512_setzero_ps();
                    for (int r = 0; r < TILE; r += 2) {
                        const __m512 even = exp2_16(_mm512_sub_ps(_mm512_loadu_ps(column + r * TILE), highest));
                        const __m512 odd = exp2_16(_mm512_sub_ps(_mm512_loadu_ps(column + (r + 1) * TILE), highest));
                        sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
                        _mm512_storeu_si512(weights + r / 2 * TILE + 16 * c, paired(even, odd));
                    }
                    total[c] = _mm512_fmadd_ps(total[c], shrink, sum);
                    most[c] = highest;
                    if (s > 0)
                        for (int d = 0; d < dim; ++d) {
                            float* at = sums + d * TILE + 16 * c;
                            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), shrink));
                        }
                }
                product(values + s * tile_size, weights, dim, TILE, TILE, sums, s > 0);
            }
            for (int c = 0; c < 4; ++c) _mm512_storeu_ps(factor + 16 * c, _mm512_div_ps(_mm512_set1_ps(1.0f), total[c]));
            store_transposed(sums, dim, factor, count, out + (token * shape.heads + head) * dim, static_cast<int64_t>(shape.heads) * dim);
            for (int c = 0; c < 4; ++c) _mm512_storeu_ps(factor + 16 * c, most[c]);
            alignas(64) float added[TILE];
            for (int c = 0; c < 4; ++c) _mm512_store_ps(added + 16 * c, total[c]);
            for (int i = 0; i < count; ++i) log_sums[head * shape.tokens() + token + i] = factor[i] + std::log2(added[i]);
        }
}


void backward_task(
    const Shape& shape, Heads query, Heads key, Heads value, Heads out, Heads grad, const float* log_sums, int document, int kv_head,
    Bf16* d_query, Bf16* d_key, Bf16* d_value) {
    const int begin = shape.cu_seqlens[document], length = shape.cu_seqlens[document + 1] - begin;
    const int dim = shape.dim, tiles = tiles_of(length), group = shape.heads / shape.kv_heads;
    const size_t tile_size = static_cast<size_t>(TILE) * dim, whole = tiles * tile_size;
    const size_t bytes = 2 * (3 * whole + 2 * tile_size) + 4 * (4 * whole / 2 + 3 * whole + 2 * tiles * TILE)
        + 4 * (tile_size / 2 + 2 * TILE * TILE) + 4 * 3 * TILE * TILE / 2 + 8192;
    scratch.reserve(bytes);
    Bf16* keys = scratch.take<Bf16>(whole);
    Bf16* key_columns = scratch.take<Bf16>(whole);
    Bf16* values = scratch.take<Bf16>(whole);
    Bf16* rows = scratch.take<Bf16>(tile_size);
    uint32_t* pairs = scratch.take<uint32_t>(tile_size / 2);
    uint32_t* query_columns = scratch.take<uint32_t>(whole / 2);
    uint32_t* query_pairs = scratch.take<uint32_t>(whole / 2);
    uint32_t* grad_columns = scratch.take<uint32_t>(whole / 2);
    uint32_t* grad_pairs = scratch.take<uint32_t>(whole / 2);
    float* sum_query = scratch.take<float>(whole);
    float* sum_key = scratch.take<float>(whole);
    float* sum_value = scratch.take<float>(whole);
    float* log_sum = scratch.take<float>(tiles * TILE);
    float* delta = scratch.take<float>(tiles * TILE);
    float* scores = scratch.take<float>(TILE * TILE);
    float* d_weights = scratch.take<float>(TILE * TILE);
    Bf16* weights = scratch.take<Bf16>(TILE * TILE);
    Bf16* d_scores = scratch.take<Bf16>(TILE * TILE);
    uint32_t* d_score_pairs = scratch.take<uint32_t>(TILE * TILE / 2);
    for (int t = 0; t < tiles; ++t) {
        const int64_t token = begin + t * TILE;
        copy_tile(key.at(token, kv_head, dim), key.stride, rows_of(length, t), dim, keys + t * tile_size);
        transpose_tile(keys + t * tile_size, dim, pairs, key_columns + t * tile_size);
        copy_tile(value.at(token, kv_head, dim), value.stride, rows_of(length, t), dim, values + t * tile_size);
    }
    const __m512 scale = _mm512_set1_ps(shape.scale * LOG2_E);
    alignas(64) float factor[TILE];
    for (float& f : factor) f = shape.scale;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int t = 0; t < tiles; ++t) {
            const int64_t token = begin + t * TILE;
            const int count = rows_of(length, t);
            copy_tile(query.at(token, head, dim), query.stride, count, dim, rows);
            transpose_words(reinterpret_cast<const uint32_t*>(rows), TILE, dim / 2, query_columns + t * tile_size / 2);
            pair_rows(rows, dim, query_pairs + t * tile_size / 2);
            copy_tile(grad.at(token, head, dim), grad.stride, count, dim, rows);
            transpose_words(reinterpret_cast<const uint32_t*>(rows), TILE, dim / 2, grad_columns + t * tile_size / 2);
            pair_rows(rows, dim, grad_pairs + t * tile_size / 2);
            for (int i = 0; i < TILE; ++i) {
                __m512 sum = _mm512_setzero_ps();
                const Bf16* result = out.at(token + i, head, dim);
                for (int d = 0; d < dim && i < count; d += 16) sum = _mm512_fmadd_ps(load16(rows + i * dim + d), load16(result + d), sum);
                delta[t * TILE + i] = _mm512_reduce_add_ps(sum);
                log_sum[t * TILE + i] = i < count ? log_sums[head * shape.tokens() + token + i] : NO_SUM;
            }
        }
        for (int s = 0; s < tiles; ++s)
            for (int t = s; t < tiles; ++t) {
                product(keys + s * tile_size, query_columns + t * tile_size / 2, TILE, dim, TILE, scores, false);
                product(values + s * tile_size, grad_columns + t * tile_size / 2, TILE, dim, TILE, d_weights, false);
                for (int c = 0; c < TILE; c += 16) {
                    const __m512 normalizer = _mm512_loadu_ps(log_sum + t * TILE + c), own = _mm512_loadu_ps(delta + t * TILE + c);
                    for (int r = 0; r < TILE; r += 2) {
                        __m512 d[2];
                        for (int i = 0; i < 2; ++i) {
                            const int at = (r + i) * TILE + c;
                            const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + at), scale, normalizer);
                            __m512 p = exp2_16(x);
                            if (s == t) p = _mm512_maskz_mov_ps(seen(r + i, c), p);
                            d[i] = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_loadu_ps(d_weights + at), own));
                            store16(weights + at, p);
                            store16(d_scores + at, d[i]);
                        }
                        _mm512_storeu_si512(d_score_pairs + r / 2 * TILE + c, paired(d[0], d[1]));
                    }
                }
                const bool more = head > kv_head * group || t > s;
                product(weights, grad_pairs + t * tile_size / 2, TILE, TILE, dim, sum_value + s * tile_size, more);
                product(d_scores, query_pairs + t * tile_size / 2, TILE, TILE, dim, sum_key + s * tile_size, more);
                product(key_columns + s * tile_size, d_score_pairs, dim, TILE, TILE, sum_query + t * tile_size, s > 0);
            }
        for (int t = 0; t < tiles; ++t) {
            const int64_t stride = static_cast<int64_t>(shape.heads) * dim;
            Bf16* to = d_query + (begin + t * TILE) * stride + static_cast<int64_t>(head) * dim;
            store_transposed(sum_query + t * tile_size, dim, factor, rows_of(length, t), to, stride);
        }
    }
    const int64_t stride = static_cast<int64_t>(shape.kv_heads) * dim;
    for (int i = 0; i < length; ++i)
        for (int d = 0; d < dim; d += 16) {
            const int64_t to = (begin + i) * stride + static_cast<int64_t>(kv_head) * dim + d;
            store16(d_key + to, _mm512_mul_ps(_mm512_loadu_ps(sum_key + static_cast<size_t>(i) * dim + d), _mm512_set1_ps(shape.scale)));
            store16(d_value + to, _mm512_loadu_ps(sum_value + static_cast<size_t>(i) * dim + d));
        }
}

}  // namespace
}  // namespace lm

extern "C" {

// query [N, heads, dim], key and value [N, kv_heads, dim], tokens `*_stride` numbers apart; out [N, heads, dim] contiguous;
// log_sums [heads, N], base 2. dim is a multiple of 32.
void lm_causal_attention(
    const uint16_t* query, int64_t query_stride, const uint16_t* key, int64_t key_stride, const uint16_t* value, int64_t value_stride,
    const int32_t* cu_seqlens, int documents, int heads, int kv_heads, int dim, float scale, uint16_t* out, float* log_sums) {
    const lm::Shape shape{cu_seqlens, documents, heads, kv_heads, dim, scale};
    lm::team_for(static_cast<int64_t>(documents) * kv_heads, [&](int64_t task) {
        lm::forward_task(
            shape, {query, query_stride}, {key, key_stride}, {value, value_stride}, static_cast<int>(task / kv_heads),
            static_cast<int>(task % kv_heads), out, log_sums);
    });
}

// out and grad [N, heads, dim], grad's tokens `grad_stride` apart; the gradients are contiguous.
void lm_causal_attention_backward(
    const uint16_t* grad, int64_t grad_stride, const uint16_t* query, int64_t query_stride, const uint16_t* key, int64_t key_stride,
    const uint16_t* value, int64_t value_stride, const uint16_t* out, const float* log_sums, const int32_t* cu_seqlens, int documents,
    int heads, int kv_heads, int dim, float scale, uint16_t* d_query, uint16_t* d_key, uint16_t* d_value) {
    const lm::Shape shape{cu_seqlens, documents, heads, kv_heads, dim, scale};
    lm::team_for(static_cast<int64_t>(documents) * kv_heads, [&](int64_t task) {
        lm::backward_task(
            shape, {query, query_stride}, {key, key_stride}, {value, value_stride}, {out, static_cast<int64_t>(heads) * dim},
            {grad, grad_stride}, log_sums, static_cast<int>(task / kv_heads), static_cast<int>(task % kv_heads), d_query, d_key, d_value);
    });
}

}
#endif
