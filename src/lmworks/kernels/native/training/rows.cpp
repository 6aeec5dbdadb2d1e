// What training does to rows of bfloat16 between matrix products: RMSNorm, SwiGLU, rotary positions, and their gradients.
// Knows no model. AVX-512 with BF16 only.
#ifdef __AVX512BF16__
#include <cmath>
#include <vector>

#include "bf16_lanes.h"
#include "team.h"

namespace lm {
namespace {

constexpr int64_t ROWS = 64;         // of one piece
constexpr int64_t NUMBERS = 1 << 14; // of one piece where there are no rows

template <typename F>
void for_rows(int64_t rows, F&& f) {
    team_for((rows + ROWS - 1) / ROWS, [&](int64_t piece) {
        const int64_t end = piece * ROWS + ROWS < rows ? piece * ROWS + ROWS : rows;
        for (int64_t row = piece * ROWS; row < end; ++row) f(row, piece);
    });
}

// Calls `f(from, lanes)` for every 16 of `count` numbers, the last of them with fewer lanes.
template <typename F>
void for_numbers(int64_t count, F&& f) {
    team_for((count + NUMBERS - 1) / NUMBERS, [&](int64_t piece) {
        const int64_t end = piece * NUMBERS + NUMBERS < count ? piece * NUMBERS + NUMBERS : count;
        for (int64_t i = piece * NUMBERS; i < end; i += 16) f(i, lanes_of(end - i));
    });
}

}  // namespace
}  // namespace lm

extern "C" {

// out = weight · round(x / rms(x)), [rows, width]; inverse [rows] keeps 1 / rms.
void lm_rms_norm(
    const uint16_t* x, const uint16_t* weight, int64_t rows, int64_t width, float eps, uint16_t* out, float* inverse) {
    lm::for_rows(rows, [&](int64_t row, int64_t) {
        const uint16_t* from = x + row * width;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) {
            const __m512 value = lm::load16(from + i, lm::lanes_of(width - i));
            squares = _mm512_fmadd_ps(value, value, squares);
        }
        inverse[row] = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / static_cast<float>(width) + eps);
        const __m512 factor = _mm512_set1_ps(inverse[row]);
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 lanes = lm::lanes_of(width - i);
            const __m512 normed = lm::rounded(_mm512_mul_ps(lm::load16(from + i, lanes), factor));
            lm::store16(out + row * width + i, _mm512_mul_ps(lm::load16(weight + i, lanes), normed), lanes);
        }
    });
}

// With n = x · inverse: d_x = (grad · weight - n · mean(grad · weight · n)) · inverse, d_weight = sum of grad · n, float.
void lm_rms_norm_backward(
    const uint16_t* grad, const uint16_t* x, const uint16_t* weight, const float* inverse, int64_t rows, int64_t width, uint16_t* d_x,
    float* d_weight) {
    const int64_t pieces = (rows + lm::ROWS - 1) / lm::ROWS, padded = (width + 15) / 16 * 16;
    std::vector<float> sums(static_cast<size_t>(pieces * padded));  // of each piece, added in one order whoever made them
    lm::for_rows(rows, [&](int64_t row, int64_t piece) {
        const uint16_t *g = grad + row * width, *from = x + row * width;
        float* sum = sums.data() + piece * padded;
        const __m512 factor = _mm512_set1_ps(inverse[row]);
        __m512 product = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 lanes = lm::lanes_of(width - i);
            const __m512 part = _mm512_mul_ps(lm::load16(g + i, lanes), _mm512_mul_ps(lm::load16(from + i, lanes), factor));
            product = _mm512_fmadd_ps(part, lm::load16(weight + i, lanes), product);
            _mm512_storeu_ps(sum + i, _mm512_add_ps(_mm512_loadu_ps(sum + i), part));
        }
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(product) / static_cast<float>(width) * inverse[row]);
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 lanes = lm::lanes_of(width - i);
            const __m512 own = _mm512_mul_ps(lm::load16(g + i, lanes), lm::load16(weight + i, lanes));
            const __m512 left = _mm512_fnmadd_ps(lm::load16(from + i, lanes), mean, own);
            lm::store16(d_x + row * width + i, _mm512_mul_ps(left, factor), lanes);
        }
    });
    for (int64_t i = 0; i < width; ++i) d_weight[i] = 0;
    for (int64_t piece = 0; piece < pieces; ++piece)
        for (int64_t i = 0; i < width; ++i) d_weight[i] += sums[static_cast<size_t>(piece * padded + i)];
}

// out = silu(gate) · up.
void lm_silu_gated(const uint16_t* gate, const uint16_t* up, int64_t count, uint16_t* out) {
    lm::for_numbers(count, [&](int64_t i, __mmask16 lanes) {
        const __m512 x = lm::load16(gate + i, lanes);
        lm::store16(out + i, _mm512_mul_ps(_mm512_mul_ps(x, lm::sigmoid16(x)), lm::load16(up + i, lanes)), lanes);
    });
}

void lm_silu_gated_backward(
    const uint16_t* grad, const uint16_t* gate, const uint16_t* up, int64_t count, uint16_t* d_gate, uint16_t* d_up) {
    lm::for_numbers(count, [&](int64_t i, __mmask16 lanes) {
        const __m512 x = lm::load16(gate + i, lanes), g = lm::load16(grad + i, lanes), share = lm::sigmoid16(x);
        const __m512 silu = _mm512_mul_ps(x, share);
        // silu' = share + silu · (1 - share)
        const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(_mm512_set1_ps(1.0f), share), share);
        lm::store16(d_up + i, _mm512_mul_ps(g, silu), lanes);
        lm::store16(d_gate + i, _mm512_mul_ps(_mm512_mul_ps(g, lm::load16(up + i, lanes)), slope), lanes);
    });
}

// Turns the first `turned` of `dim` numbers of each head, pairs half of them apart: x [tokens, heads, dim], tokens `stride`
// apart; cos and sin [tokens, turned], both halves alike; direction 1, or -1 for the gradient; out is contiguous.
void lm_rotate(
    const uint16_t* x, int64_t stride, const uint16_t* cos, const uint16_t* sin, int64_t tokens, int64_t heads, int64_t dim,
    int64_t turned, float direction, uint16_t* out) {
    const __m512 sign = _mm512_set1_ps(direction);
    lm::for_rows(tokens, [&](int64_t token, int64_t) {
        for (int64_t head = 0; head < heads; ++head) {
            const uint16_t* from = x + token * stride + head * dim;
            uint16_t* to = out + (token * heads + head) * dim;
            for (int64_t i = 0; i < turned / 2; i += 16) {
                const __mmask16 lanes = lm::lanes_of(turned / 2 - i);
                const __m512 low = lm::load16(from + i, lanes), high = lm::load16(from + turned / 2 + i, lanes);
                const __m512 c = lm::load16(cos + token * turned + i, lanes);
                const __m512 s = _mm512_mul_ps(lm::load16(sin + token * turned + i, lanes), sign);
                lm::store16(to + i, _mm512_fnmadd_ps(high, s, _mm512_mul_ps(low, c)), lanes);
                lm::store16(to + turned / 2 + i, _mm512_fmadd_ps(low, s, _mm512_mul_ps(high, c)), lanes);
            }
            for (int64_t i = turned; i < dim; ++i) to[i] = from[i];
        }
    });
}

}
#endif
