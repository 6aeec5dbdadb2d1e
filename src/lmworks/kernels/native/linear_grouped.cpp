// Products with 8-bit and 4-bit weights that have a scale, perhaps a zero point, per output and group of inputs. The sum
// of a group is exact; groups are added in float, one after the other.
#include <algorithm>

#include "linear_blocks.h"
#include "linear_layout.h"

namespace lm {
namespace {

// Add the products of `count` inputs of a group.
template <int KIND, int ROWS>
inline void add_group(Ints (&sums)[ROWS][VECTORS], const uint8_t* weights, const char* x, int64_t stride, int count) {
    constexpr int STEP = KIND == WEIGHT_W4G ? 8 : 4;  // inputs in 32 bits of weights
    for (int i = 0; i < count; i += STEP, weights += STRIP * 4, x += STEP) {
        fetch_ahead<(ROWS >= (KIND == WEIGHT_W4G ? 4 : 8))>(weights);
        Ints lanes[VECTORS], high[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            lanes[v] = load_lanes(weights + v * LANES * 4);
            if constexpr (KIND == WEIGHT_W4G) {
                high[v] = high_nibbles(lanes[v]);
                lanes[v] = low_nibbles(lanes[v]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) {
                if constexpr (KIND == WEIGHT_W4G) {
                    sums[r][v] = dot_nibbles(sums[r][v], lanes[v], broadcast_lanes(x + r * stride));
                    sums[r][v] = dot_nibbles(sums[r][v], high[v], broadcast_lanes(x + r * stride + 4));
                } else {
                    sums[r][v] = dot_bytes(sums[r][v], lanes[v], broadcast_lanes(x + r * stride));
                }
            }
    }
}

inline Floats load_scale(const uint8_t* scales, int lane, bool half) {
    return half ? load_half(reinterpret_cast<const uint16_t*>(scales) + lane)
                : load(reinterpret_cast<const float*>(scales) + lane);
}

template <int KIND, bool ZEROS, int ROWS>
void multiply_rows(const StripProduct& p, int first) {
    const int groups = num_groups(KIND, p.in, p.group);
    const int64_t stride = p.converted_stride;
    const int64_t header = group_header_bytes(*p.header), group_stride = group_bytes(KIND, p.group, *p.header);
    const bool half = p.header->half_scales;
    const uint8_t* weights = p.weights;
    const char* x = p.converted + first * stride;
    const char* row_scale = x + padded_values(KIND, p.in, p.group);
    const char* offset = row_scale + static_cast<int64_t>(groups) * 4;
    alignas(64) float totals[ROWS][STRIP];  // in memory: the registers are full of the group's sums
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(&totals[r][v * LANES], load(p.bias + v * LANES));
    for (int g = 0; g < groups; ++g, weights += group_stride, x += p.group, row_scale += 4, offset += 4) {
        Ints sums[ROWS][VECTORS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast_lanes(offset + r * stride);
        add_group<KIND>(sums, weights + header, x, stride, std::min(p.group, p.in - g * p.group));
        Floats scales[VECTORS], zeros[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            scales[v] = load_scale(weights, v * LANES, half);
            if constexpr (ZEROS) zeros[v] = load_scale(weights + header / 2, v * LANES, half);
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const Floats scale = broadcast(*reinterpret_cast<const float*>(row_scale + r * stride));
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) {
                Floats sum = to_float(sums[r][v]);
                if constexpr (ZEROS) sum = fma(zeros[v], to_float(broadcast_lanes(offset + r * stride)), sum);
                float* total = &totals[r][v * LANES];
                store(total, fma(sum * scales[v], scale, load(total)));
            }
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(p.out + (first + r) * p.out_stride + v * LANES, load(&totals[r][v * LANES]));
}

template <int KIND, bool ZEROS>
void multiply(const StripProduct& p) {
    in_runs<MOST_ROWS>(p, [&](int first, auto count) { multiply_rows<KIND, ZEROS, decltype(count)::value>(p, first); });
}

}  // namespace

void multiply_grouped(const StripProduct& p) {
    if (p.kind == WEIGHT_W8G)
        multiply<WEIGHT_W8G, false>(p);
    else if (p.header->has_zeros)
        multiply<WEIGHT_W4G, true>(p);
    else
        multiply<WEIGHT_W4G, false>(p);
}

}  // namespace lm
