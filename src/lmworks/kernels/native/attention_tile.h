// Attention of one task, tile by tile: scores, softmax, weighted values. Knows no plan.
//
// Few rows (a decoding sequence) read keys and values straight from the cache. Many rows share packed copies of the tile.
// Both do the same sums in the same order, and a key that a row does not see adds nothing but zeros; so a row's bits depend
// neither on the rows beside it nor on where its sequence was cut.
#pragma once
#include <algorithm>
#include <cmath>

#include "attention_arithmetic.h"
#include "attention_task.h"

namespace lm::attention {

// Vectors of keys in a tile that some row of a block sees.
struct Range {
    int first, end;
    bool empty() const { return first >= end; }
};

template <class A>
class TileAttention {
public:
    TileAttention(const Task& task, Scratch& scratch)
        : task_(task),
          scratch_(scratch),
          chunks_(padded(task.head_dim, A::DIMS_PER_VECTOR) / A::DIMS_PER_VECTOR),
          values_(padded(task.head_dim, A::VALUE_PADDING) / LANES),
          partial_(partial_floats(task.head_dim)) {}

    void run() {
        const int rows = task_.rows();
        for (int row = 0; row < rows; ++row) {
            const float* from = task_.query + row / task_.group * task_.query_stride + row % task_.group * task_.head_dim;
            A::convert_query(from, task_.head_dim, query(row), chunks_ * LANES);
            if (task_.partials == nullptr) clear_partial(total(row), task_.head_dim);
        }
        find_rows(task_.first_tile);
        if (rows <= BLOCK)
            for (int v = 0; v < VECTORS; ++v) fetch(scratch_.rows[task_.first_tile & 1], v, 0);
        for (int tile = task_.first_tile; tile < task_.last_tile; ++tile) run_tile(tile);
        if (task_.partials != nullptr) return;
        for (int row = 0; row < rows; ++row) finish(total(row), task_, row);
    }

private:
    static constexpr int VECTORS = TILE / LANES;            // of keys, in a tile
    static constexpr int STEPS = LANES / A::KEYS_PER_STEP;  // of weighted values, for a vector of keys

    float* query(int row) const { return scratch_.query + row * chunks_ * LANES; }
    float* total(int row) const { return scratch_.totals + row * partial_; }

    // What rows [row, row + count) see of the tile that begins at `base`.
    Range seen(int base, int row, int count) const {
        const int first = std::max(task_.first_seen(row) - base, 0) / LANES;
        const int end = std::min(task_.end_seen(row + count - 1) - base, TILE);
        return {first, (end + LANES - 1) / LANES};
    }

    void run_tile(int tile) {
        const int base = tile * TILE, rows = task_.rows();
        const Range all = seen(base, 0, rows);
        rows_ = scratch_.rows[tile & 1];
        next_rows_ = nullptr;
        if (tile + 1 < task_.last_tile) {
            find_rows(tile + 1);
            next_rows_ = scratch_.rows[(tile + 1) & 1];
        }
        if constexpr (A::SCALED) find_scales(all);
        if (rows > BLOCK) pack(all);
        for (int row = 0; row < rows; row += BLOCK) {
            const int count = std::min(BLOCK, rows - row);
            float* parts = task_.partials == nullptr
                               ? scratch_.parts
                               : task_.partials + (static_cast<int64_t>(tile - task_.first_tile) * rows + row) * partial_;
            const Range range = seen(base, row, count);
            if (range.empty()) {
                for (int r = 0; task_.partials != nullptr && r < count; ++r)
                    clear_partial(parts + r * partial_, task_.head_dim);
                continue;
            }
            if (rows > BLOCK)
                run_rows<true>(count, base, row, range, parts);
            else
                run_rows<false>(count, base, row, range, parts);
        }
    }

    template <bool PACKED>
    void run_rows(int count, int base, int row, Range range, float* parts) {
        switch (count) {
            case 1: return run_block<1, PACKED>(base, row, range, parts);
            case 2: return run_block<2, PACKED>(base, row, range, parts);
            case 3: return run_block<3, PACKED>(base, row, range, parts);
            case 4: return run_block<4, PACKED>(base, row, range, parts);
            case 5: return run_block<5, PACKED>(base, row, range, parts);
            default: return run_block<BLOCK, PACKED>(base, row, range, parts);
        }
    }

    template <int R, bool PACKED>
    void run_block(int base, int row, Range range, float* parts) {
        if constexpr (PACKED) {
            int v = range.first;
            for (; v + COLUMNS / 2 <= range.end; v += COLUMNS / 2) packed_scores<R, COLUMNS / 2>(row, v);
            for (; v < range.end; ++v) packed_scores<R, 1>(row, v);
        } else {
            direct_scores<R>(row, range);
        }
        for (int r = 0; r < R; ++r) soften(base, row + r, r, range, parts + r * partial_);
        int c = 0;
        for (; c + COLUMNS <= values_; c += COLUMNS) weighted<R, COLUMNS, PACKED>(range, c, parts);
        if constexpr (COLUMNS > 2)
            for (; c + 2 <= values_; c += 2) weighted<R, 2, PACKED>(range, c, parts);
        for (; c < values_; ++c) weighted<R, 1, PACKED>(range, c, parts);
        if (task_.partials != nullptr) return;
        for (int r = 0; r < R; ++r) {
            const float* part = parts + r * partial_;
            add_partial(total(row + r), part[0], part[1], part + VALUES_AT, task_.head_dim);
        }
    }

    // Where the keys of a tile are. What lies behind the last key is taken for the last key: it gets no weight.
    void find_rows(int tile) {
        const char** rows = scratch_.rows[tile & 1];
        const int base = tile * TILE, last = task_.keys - 1, size = task_.block_size;
        int k = 0;
        for (const int end = std::min(TILE, task_.keys - base); k < end;) {
            const int within = (base + k) % size;
            const int64_t block = task_.block_table[(base + k) / size];
            const char* row = task_.key + (block * size + within) * task_.row_bytes;
            for (const int run = std::min(k + size - within, end); k < run; ++k, row += task_.row_bytes) rows[k] = row;
        }
        for (; k < TILE; ++k) rows[k] = rows[last - base];
    }

    void find_scales(Range range) {
        for (int k = range.first * LANES; k < range.end * LANES; ++k) {
            scratch_.key_scale[k] = row_scale(rows_[k], task_.head_dim);
            scratch_.value_scale[k] = row_scale(rows_[k] + task_.to_value, task_.head_dim);
        }
    }

    // Ask for the rows of a vector of keys, `offset` bytes further, for the second-level cache: the first takes too few
    // requests at once to hide the way to memory.
    void fetch(const char* const* rows, int vector, int64_t offset) const {
        for (int i = vector * LANES; i < (vector + 1) * LANES; ++i)
            for (int64_t byte = 0; byte < task_.row_bytes; byte += 64) __builtin_prefetch(rows[i] + offset + byte, 0, 2);
    }

    // LANES keys, one a row; then one a lane.
    static LM_INLINE void turned_keys(const char* const* rows, typename A::Part part, Vec (&numbers)[LANES]) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) numbers[i] = A::head_numbers(rows[i], part);
        transpose(numbers);
    }

    void pack(Range range) {
        for (int c = 0; c < chunks_; ++c) {
            const auto part = A::part(c, task_.head_dim);
            for (int v = range.first; v < range.end; ++v) {
                Vec numbers[LANES];
                turned_keys(rows_ + v * LANES, part, numbers);
                float* to = scratch_.keys + c * LANES * TILE + v * LANES;
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) store(to + i * TILE, numbers[i]);
            }
        }
        for (int c = 0; c < values_; ++c) {
            const auto part = A::value_part(c, task_.head_dim);
            for (int s = first_step(range); s < end_step(range); ++s)
                store(scratch_.values + (s * values_ + c) * LANES, A::values(rows_, s, task_.to_value, part, c & 1));
        }
    }

    static int first_step(Range range) { return range.first * STEPS; }
    static int end_step(Range range) { return range.end * STEPS; }

    // A score is a sum over vectors of the head first, then over their lanes: every fourth, then the four.
    template <int R>
    void direct_scores(int row, Range range) {
        constexpr int QUADS = LANES / 4;
        const int width = chunks_ * LANES;
        for (int v = range.first; v < range.end; ++v) {
            fetch(rows_, v, task_.to_value);
            Vec quads[R][4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const char* const* rows = anchored(rows_ + v * LANES + i);
                Vec sums[R][QUADS] = {};
                for (int c = 0; c < chunks_; ++c) {
                    const auto part = A::part(c, task_.head_dim);
                    const float* q = query(row) + c * LANES;
#pragma GCC unroll 4
                    for (int k = 0; k < QUADS; ++k) {
                        const Vec key = A::head_numbers(rows[4 * k], part);
#pragma GCC unroll 8
                        for (int r = 0; r < R; ++r) sums[r][k] = A::step(key, load(q + r * width), sums[r][k]);
                    }
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) quads[r][i] = sums_of_quads(sums[r]);
            }
            for (int r = 0; r < R; ++r)
                store(scratch_.scores + r * TILE + v * LANES,
                      sums_in_quads(quads[r][0], quads[r][1], quads[r][2], quads[r][3]));
        }
    }

    // The same sums with keys in the lanes. This is the sum over numbers `i`, `i` + S, `i` + 2 S, ... of every vector.
    template <int R, int N, int S>
    LM_INLINE void add_up(const float* keys, const float* q, int i, Vec (&sums)[R][N]) const {
        if constexpr (S < LANES) {
            Vec more[R][N];
            constexpr int APART = 2 * LANES / S;
            add_up<R, N, 2 * S>(keys, q, i, sums);
            add_up<R, N, 2 * S>(keys, q, i + APART, more);
            add_to(sums, more);
        } else {
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) sums[r][n] = Vec{};
            const int width = chunks_ * LANES;
            const float* key = keys + i * TILE;
            q += i;
            for (int c = 0; c < chunks_; ++c, key += LANES * TILE, q += LANES) {
                Vec numbers[N];
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) numbers[n] = load(key + n * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const Vec spread_q = spread(q[r * width]);
#pragma GCC unroll 8
                    for (int n = 0; n < N; ++n) sums[r][n] = A::step(numbers[n], spread_q, sums[r][n]);
                }
            }
        }
    }

    template <int R, int N>
    void packed_scores(int row, int vector) {
        const float* q = query(row);
        const float* keys = scratch_.keys + vector * LANES;
        Vec sums[R][N], more[R][N], last[R][N];
        add_up<R, N, 4>(keys, q, 0, sums);
        add_up<R, N, 4>(keys, q, 2, more);
        add_to(sums, more);
        add_up<R, N, 4>(keys, q, 1, more);
        add_up<R, N, 4>(keys, q, 3, last);
        add_to(more, last);
        add_to(sums, more);
        float* scores = scratch_.scores + vector * LANES;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) store(scores + r * TILE + n * LANES, sums[r][n]);
    }

    template <int R, int N>
    static LM_INLINE void add_to(Vec (&sums)[R][N], const Vec (&more)[R][N]) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[r][n] = sums[r][n] + more[r][n];
    }

    // Scores of one row become weights; their greatest and their sum go to `part`.
    void soften(int base, int row, int r, Range range, float* part) {
        const int first = task_.first_seen(row) - base, end = task_.end_seen(row) - base;
        const bool capped = task_.softcap > 0.0f, sloped = task_.slopes != nullptr;
        const float scale = capped ? task_.scale / task_.softcap : task_.scale * LOG2_E;
        const float cap = task_.softcap * LOG2_E, slope = sloped ? task_.slopes[row % task_.group] * LOG2_E : 0.0f;
        const int place = task_.place(row) - base;
        float* s = scratch_.scores + r * TILE;
        Vec most = spread(LOWEST);
        for (int v = range.first; v < range.end; ++v) {
            Vec x = load(s + v * LANES) * scale;
            if constexpr (A::SCALED) x = x * load(scratch_.key_scale + v * LANES);
            if (capped) x = tanh(x) * cap;
            const IntVec key = lane_numbers() + v * LANES;
            if (sloped) x = x + slope * __builtin_convertvector(key - place, Vec);
            if (v * LANES < first || (v + 1) * LANES > end) x = (key >= first) & (key < end) ? x : spread(-INFINITY);
            store(s + v * LANES, x);
            most = max(x, most);
        }
        const float greatest = max_of_lanes(most);
        Vec sum{};
        for (int v = range.first; v < range.end; ++v) {
            Vec weight = exp2(load(s + v * LANES) - greatest);
            sum = sum + weight;
            if constexpr (A::SCALED) weight = weight * load(scratch_.value_scale + v * LANES);
            A::store_weights(scratch_.weights + r * TILE, v, weight);
        }
        part[0] = greatest;
        part[1] = sum_of_lanes(sum);
    }

    template <int R, int N, bool PACKED>
    void weighted(Range range, int c, float* parts) {
        Vec sums[R][N] = {};
        typename A::Part part[N];
        for (int n = 0; n < N; ++n) part[n] = A::value_part(c + n, task_.head_dim);
        const char* const* rows = rows_;
        const char* const* next_rows = PACKED || c > 0 ? nullptr : next_rows_;
        const int64_t to_value = task_.to_value;
        const float* weights = scratch_.weights;
        const float* values = scratch_.values + c * LANES;
        const int64_t width = values_ * LANES;
        for (int s = first_step(range), end = end_step(range); s < end; ++s) {
            if (next_rows != nullptr && s % STEPS == 0) fetch(next_rows, s / STEPS, 0);
            Vec numbers[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n)
                numbers[n] = PACKED ? load(values + s * width + n * LANES) : A::values(rows, s, to_value, part[n], n & 1);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Vec weight = spread(weights[r * TILE + s]);
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) sums[r][n] = A::step(numbers[n], weight, sums[r][n]);
            }
        }
        const int64_t partial = partial_;
        float* out = parts + VALUES_AT + c * LANES;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) store(out + r * partial + n * LANES, sums[r][n]);
    }

    const Task& task_;
    Scratch& scratch_;
    const int chunks_;   // vectors of a query or key
    const int values_;   // vectors of a weighted value
    const int partial_;  // floats of a partial result
    const char* const* rows_ = nullptr;
    const char* const* next_rows_ = nullptr;  // null in the last tile
};

}  // namespace lm::attention
