// How the rows of a strip are taken in runs whose sums stay in registers. Knows no kind of weight.
#pragma once
#include <cstdint>
#include <type_traits>

#include "linear_layout.h"

namespace lm {

// Ask for the weights that follow. Where a step multiplies many rows the processor's own prefetching falls behind; with
// few rows it does better alone.
template <bool WANTED>
inline void fetch_ahead(const uint8_t* weights) {
    constexpr int DISTANCE = 3072;
    if constexpr (WANTED)
        for (int i = 0; i < STRIP * 4; i += 64) __builtin_prefetch(weights + DISTANCE + i);
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

// Call `run(first, count)`, the count as a constant, for runs of rows that differ in length by one at most: 16 rows are
// better taken as 8 and 8 than as 12 and 4.
template <int MOST, typename Run>
inline void in_runs(const StripProduct& p, const Run& run) {
    const int64_t runs = (p.rows + MOST - 1) / MOST;
    for (int64_t i = 0; i < runs; ++i) {
        const int first = static_cast<int>(p.rows * i / runs), last = static_cast<int>(p.rows * (i + 1) / runs);
        // Where many rows are written their memory is far away: sent for now, it is there when the sums are done.
        for (int row = first; runs > 1 && row < last; ++row)
            for (int column = 0; column < STRIP; column += 16) __builtin_prefetch(p.out + row * p.out_stride + column, 1);
        with_constant<MOST>(last - first, [&](auto count) { run(first, count); });
    }
}

}  // namespace lm
