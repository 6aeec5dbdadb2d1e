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
        if (rows <= BLOCK) spread_queries();
        find_rows(task_.first_tile, task_.key, scratch_.rows[0]);
        if (rows <= BLOCK && !task_.fetched) fetch(scratch_.rows[0], 0, TILE, 0, task_.row_bytes);
        for (int tile = task_.first_tile; tile < task_.last_tile; ++tile) run_tile(tile);
        if (task_.partials != nullptr) return;
        for (int row = 0; row < rows; ++row) finish(total(row), task_, row);
    }

private:
    static constexpr int VECTORS = TILE / LANES;            // of keys, in a tile
    static constexpr int QUADS = LANES / 4;                 // of numbers, in a vector
    static constexpr int FETCHED = std::min(8, LANES);      // keys asked for at once
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
        const int turn = (tile - task_.first_tile) & 1;
        rows_ = scratch_.rows[turn];
        next_rows_ = scratch_.rows[1 - turn];
        if (tile + 1 < task_.last_tile)
            find_rows(tile + 1, task_.key, scratch_.rows[1 - turn]);
        else if (task_.next_key != nullptr)
            find_rows(task_.first_tile, task_.next_key, scratch_.rows[1 - turn]);
        else
            next_rows_ = nullptr;
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
            direct_scores<R>(range);
        }
        for (int r = 0; r < R; ++r) softmax(base, row + r, r, range, parts + r * partial_);
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
    void find_rows(int tile, const char* plane, const char** rows) const {
        const int base = tile * TILE, size = task_.block_size, end = std::min(TILE, task_.keys - base);
        int k = 0;
        while (k < end) {
            const int within = (base + k) % size;
            const int64_t block = task_.block_table[(base + k) / size];
            const char* row = plane + (block * size + within) * task_.row_bytes;
            for (const int run = std::min(k + size - within, end); k < run; ++k, row += task_.row_bytes) rows[k] = row;
        }
        for (; k < TILE; ++k) rows[k] = rows[end - 1];
    }

    void find_scales(Range range) {
        for (int k = range.first * LANES; k < range.end * LANES; ++k) {
            scratch_.key_scale[k] = row_scale(rows_[k], task_.head_dim);
            scratch_.value_scale[k] = row_scale(rows_[k] + task_.to_value, task_.head_dim);
        }
    }

    // Ask for bytes [from, to) of rows [first, end), for the second-level cache: the first takes too few requests at once
    // to hide the way to memory. Spread over the work, for there are too many for all at once.
    void fetch(const char* const* rows, int first, int end, int64_t from, int64_t to) const {
        for (int i = first; i < end; ++i)
            for (int64_t byte = from; byte < to; byte += 64) __builtin_prefetch(rows[i] + byte, 0, 2);
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

    // A score is a sum over the quads of numbers of the head that are QUADS apart, one sum each, and then over those sums.
    // Here a vector holds a number of each quad for four keys.
    template <int R>
    void direct_scores(Range range) {
        for (int v = range.first; v < range.end; ++v) {
            const char* const* rows = rows_ + v * LANES;
            Vec sums[R][QUADS] = {};
            const float* q = scratch_.keys;
            for (int c = 0; c < chunks_; ++c, q += 4 * R * LANES) {
                const auto part = A::part(c, task_.head_dim);
                const int64_t from = task_.to_value + task_.row_bytes * c / chunks_;
                fetch(rows, 0, LANES, from, task_.to_value + task_.row_bytes * (c + 1) / chunks_);
#pragma GCC unroll 4
                for (int k = 0; k < QUADS; ++k) {
                    Vec keys[4];
#pragma GCC unroll 4
                    for (int i = 0; i < 4; ++i) keys[i] = A::head_numbers(rows[4 * k + i], part);
                    transpose_quads(keys);
#pragma GCC unroll 4
                    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 8
                        for (int r = 0; r < R; ++r)
                            sums[r][k] = A::step(keys[i], load(q + (i * R + r) * LANES), sums[r][k]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) store(scratch_.scores + r * TILE + v * LANES, sums_of_quads(sums[r]));
        }
    }

    // The numbers of few queries as `direct_scores` takes them: each in four lanes, for four keys.
    void spread_queries() {
        const int rows = task_.rows();
        for (int c = 0; c < chunks_; ++c)
            for (int r = 0; r < rows; ++r) {
                const Vec numbers = load(query(r) + c * LANES);
                float* to = scratch_.keys + (4 * c * rows + r) * LANES;
                store(to, spread_in_quads<0>(numbers));
                store(to + rows * LANES, spread_in_quads<1>(numbers));
                store(to + 2 * rows * LANES, spread_in_quads<2>(numbers));
                store(to + 3 * rows * LANES, spread_in_quads<3>(numbers));
            }
    }

    // The same sums with LANES keys in a vector.
    template <int R, int N>
    void packed_scores(int row, int vector) {
        const int width = chunks_ * LANES;
        Vec totals[QUADS][R][N];
#pragma GCC unroll 4
        for (int quad = 0; quad < QUADS; ++quad) {
            const float* q = query(row) + quad * 4;
            const float* keys = scratch_.keys + quad * 4 * TILE + vector * LANES;
            Vec sums[R][N] = {};
            for (int c = 0; c < chunks_; ++c, q += LANES, keys += LANES * TILE) {
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    Vec numbers[N];
#pragma GCC unroll 8
                    for (int n = 0; n < N; ++n) numbers[n] = load(keys + i * TILE + n * LANES);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        const Vec number = spread(q[r * width + i]);
#pragma GCC unroll 8
                        for (int n = 0; n < N; ++n) sums[r][n] = A::step(numbers[n], number, sums[r][n]);
                    }
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) totals[quad][r][n] = sums[r][n];
        }
        float* scores = scratch_.scores + vector * LANES;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                Vec total = totals[0][r][n];
                if constexpr (QUADS > 1) total = total + totals[1][r][n];
                if constexpr (QUADS > 2) total = total + (totals[2][r][n] + totals[3][r][n]);
                store(scores + r * TILE + n * LANES, total);
            }
    }

    // Scores of one row become weights; their greatest and their sum go to `part`.
    void softmax(int base, int row, int r, Range range, float* part) {
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
        const char* const* next_rows = PACKED ? nullptr : next_rows_;
        const int64_t from = task_.row_bytes * c / values_, to = task_.row_bytes * (c + N) / values_;
        const int64_t to_value = task_.to_value;
        const float* weights = scratch_.weights;
        const float* values = scratch_.values + c * LANES;
        const int64_t width = values_ * LANES;
        for (int s = first_step(range), end = end_step(range); s < end; ++s) {
            const int key = s * A::KEYS_PER_STEP;
            if (next_rows != nullptr && key % FETCHED == 0) {
                const int place = key - range.first * LANES;
                fetch(next_rows, place, key + FETCHED == range.end * LANES ? TILE : place + FETCHED, from, to);
            }
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
