// Products with 8-bit and 4-bit weights that have a scale, perhaps a zero point, per output and group of inputs. The
// sum of a group is exact; groups are added in float, one after the other.
#include "linear_blocks.h"
#include "linear_layout.h"

namespace lm {
namespace {

// Sums over one group, from the rows' offsets on.
template <int KIND, int ROWS, int VECTORS>
inline void add_group(Ints (&sums)[ROWS][VECTORS], const uint8_t* weights, const char* x, int64_t stride, int group) {
    constexpr int STEP = KIND == WEIGHT_W4G ? 8 : 4;  // inputs per 32 bits of weights
    for (int i = 0; i < group; i += STEP, weights += TILE * 4, x += STEP) {
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) {
            const Ints lanes = load_lanes(weights + v * LANES * 4);
            if constexpr (KIND == WEIGHT_W8G) {
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) sums[r][v] = dot_bytes(sums[r][v], lanes, broadcast_lanes(x + r * stride));
            } else {
                const Ints low = low_nibbles(lanes), high = high_nibbles(lanes);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    sums[r][v] = dot_nibbles(sums[r][v], low, broadcast_lanes(x + r * stride));
                    sums[r][v] = dot_nibbles(sums[r][v], high, broadcast_lanes(x + r * stride + 4));
                }
            }
        }
    }
}

inline Floats load_scale(const uint8_t* scales, int lane, bool half) {
    return half ? load_half(reinterpret_cast<const uint16_t*>(scales) + lane) : load(reinterpret_cast<const float*>(scales) + lane);
}

template <int KIND, bool ZEROS, int ROWS, int VECTORS>
void block(const TileProduct& p, int first, int column) {
    const int groups = num_groups(p.kind, p.in, p.group);
    const int64_t stride = p.converted_stride, header = group_header_bytes(*p.header);
    const int64_t group_stride = group_bytes(p.kind, p.group, *p.header);
    const bool half = p.header->half_scales;
    const uint8_t* weights = p.weights;
    const char* x = p.converted + first * stride;
    const char* scale = x + padded_values(p.kind, p.in, p.group);
    const char* offset = scale + static_cast<int64_t>(groups) * 4;
    Floats totals[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) totals[r][v] = broadcast(0.0f);
    for (int g = 0; g < groups; ++g, weights += group_stride, x += p.group, scale += 4, offset += 4) {
        Ints sums[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast_lanes(offset + r * stride);
        add_group<KIND>(sums, weights + header + column * 4, x, stride, p.group);
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) {
            const Floats scales = load_scale(weights, column + v * LANES, half);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                Floats sum = to_float(sums[r][v]);
                if constexpr (ZEROS) {
                    const Floats zeros = load_scale(weights + header / 2, column + v * LANES, half);
                    sum = fma(zeros, to_float(broadcast_lanes(offset + r * stride)), sum);
                }
                const Floats row_scale = broadcast(*reinterpret_cast<const float*>(scale + r * stride));
                totals[r][v] = fma(sum * scales, row_scale, totals[r][v]);
            }
        }
    }
    float* out = p.out + first * p.out_stride + column;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v)
            store(out + r * p.out_stride + v * LANES, totals[r][v] + load(p.bias + column + v * LANES));
}

template <int KIND, bool ZEROS>
void tile(const TileProduct& p) {
    in_blocks<BYTES_ROWS, 2>(p.rows, [&](int first, int column, auto rows, auto vectors) {
        block<KIND, ZEROS, decltype(rows)::value, decltype(vectors)::value>(p, first, column);
    });
}

}  // namespace

void grouped_tile(const TileProduct& p) {
    if (p.kind == WEIGHT_W8G)
        tile<WEIGHT_W8G, false>(p);
    else if (p.header->has_zeros)
        tile<WEIGHT_W4G, true>(p);
    else
        tile<WEIGHT_W4G, false>(p);
}

}  // namespace lm
