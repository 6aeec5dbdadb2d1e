// How a tile's outputs are taken in blocks whose sums stay in registers. Knows no kind of weight.
#pragma once
#include <cstdint>
#include <type_traits>

#include "linear.h"
#include "linear_simd.h"

namespace lm {

// Vectors of columns that fit beside so many rows, each output with so many registers for its sums.
constexpr int vectors_beside(int rows, int sums) {
    int vectors = TILE / LANES;
    while (vectors > 1 && rows * vectors * sums + vectors + 2 > REGISTERS) vectors /= 2;
    return vectors;
}

template <int N, typename Call>
inline void with_constant(int n, const Call& call) {
    if constexpr (N > 0) {
        if (n == N)
            call(std::integral_constant<int, N>{});
        else
            with_constant<N - 1>(n, call);
    }
}

// Call `block(first row, column, rows, vectors)`, the last two as constants, for all blocks of a tile. Runs of rows differ in length
// by one at most: eight rows are better taken as four and four than as six and two.
template <int MOST_ROWS, int SUMS, typename Block>
inline void in_blocks(int rows, const Block& block) {
    const int64_t runs = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t run = 0; run < runs; ++run) {
        const int first = static_cast<int>(rows * run / runs), last = static_cast<int>(rows * (run + 1) / runs);
        with_constant<MOST_ROWS>(last - first, [&](auto count) {
            constexpr int vectors = vectors_beside(decltype(count)::value, SUMS);
            for (int column = 0; column < TILE; column += vectors * LANES)
                block(first, column, count, std::integral_constant<int, vectors>{});
        });
    }
}

}  // namespace lm
