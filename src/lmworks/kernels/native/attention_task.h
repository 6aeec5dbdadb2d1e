// One key head's share of a piece of work, its memory, and how partial results become one. Knows no plan and no arithmetic.
#pragma once
#include "attention_vector.h"

namespace lm::attention {

constexpr int TILE = 128;         // keys whose weights share a greatest score; tiles begin at multiples of it
constexpr int BLOCK = 6;          // rows whose sums are in registers together
constexpr int VALUES_AT = 16;     // in a partial result
constexpr float LOWEST = -1e30f;  // greatest score where nothing was seen: finite, so that differences are numbers
constexpr float LOG2_E = 1.44269504f;

// `tokens` queries times `group` heads are the rows; they attend to tiles [first_tile, last_tile).
struct Task {
    const char* key;       // the key head's plane
    const char* next_key;  // that of the head which this thread takes next, or null
    bool fetched;          // whether the head before asked for this one's first keys
    int64_t to_value;  // bytes from a key to its value
    int64_t row_bytes;
    int block_size, head_dim, group;
    const int32_t* block_table;
    int position, tokens;  // of the first query; how many
    int keys;              // that the cache has
    bool causal;
    int window;  // 0: none
    int first_tile, last_tile;
    float scale, softcap;  // softcap 0: none
    const float* slopes;   // [group], or null
    const float* sinks;    // [group], or null
    const float* query;    // of the first token and head
    int64_t query_stride;
    float* out;
    int64_t out_stride;
    float* partials;  // [tiles, rows, partial_floats] where a merge follows, else null

    int rows() const { return tokens * group; }
    int place(int row) const { return position + row / group; }
    // A row sees keys [first_seen, end_seen).
    int first_seen(int row) const { return window > 0 && place(row) >= window ? place(row) - window + 1 : 0; }
    int end_seen(int row) const { return causal ? place(row) + 1 : keys; }
};

inline int padded(int count, int unit) { return (count + unit - 1) / unit * unit; }

// A partial result: greatest score (in units of log 2) and sum of weights at [0] and [1], weighted values from [VALUES_AT]
// on, padded for every arithmetic.
inline int partial_floats(int head_dim) { return VALUES_AT + padded(head_dim, 32); }

// Memory of one thread.
struct Scratch {
    float *query, *totals, *keys, *values, *scores, *weights, *parts, *key_scale, *value_scale;
    const char* rows[2][TILE];  // where the keys of this tile and the next are, in turn

    static int64_t floats(int rows, int head_dim) {
        const int64_t width = padded(head_dim, 32);
        return (rows + BLOCK) * partial_floats(head_dim) + (rows + 2 * TILE) * width + (2 * BLOCK + 2) * TILE;
    }
    Scratch(float* memory, int rows, int head_dim) {
        const int64_t width = padded(head_dim, 32);
        const auto cut = [&](int64_t count) { return std::exchange(memory, memory + count); };
        query = cut(rows * width);
        totals = cut(rows * partial_floats(head_dim));
        parts = cut(BLOCK * partial_floats(head_dim));
        keys = cut(TILE * width);
        values = cut(TILE * width);
        scores = cut(BLOCK * TILE);
        weights = cut(BLOCK * TILE);
        key_scale = cut(TILE);
        value_scale = cut(TILE);
    }
};

inline void clear_partial(float* partial, int head_dim) {
    std::memset(partial, 0, partial_floats(head_dim) * sizeof(float));
    partial[0] = LOWEST;
}

// Add what comes behind all that `total` holds; `values` may be null. A row's results are added tile by tile in this one
// formula, whoever computed them.
inline void add_partial(float* total, float most, float sum, const float* values, int head_dim) {
    const float greatest = total[0] > most ? total[0] : most;
    const Vec old = exp2(spread(total[0] - greatest)), added = exp2(spread(most - greatest));
    total[0] = greatest;
    total[1] = total[1] * old[0] + sum * added[0];
    for (int i = 0; i < head_dim; i += LANES) {
        float* sums = total + VALUES_AT + i;
        store(sums, fma(values == nullptr ? Vec{} : load(values + i), added, load(sums) * old));
    }
}

// A row's result from its total; `row` counts from the task's first.
inline void finish(float* total, const Task& task, int row) {
    const int token = row / task.group, head = row % task.group;
    if (task.sinks != nullptr) add_partial(total, task.sinks[head] * LOG2_E, 1.0f, nullptr, task.head_dim);
    const float share = total[1] == 0.0f ? 0.0f : 1.0f / total[1];
    float* out = task.out + token * task.out_stride + head * task.head_dim;
    // Adding 0 makes 0 of -0: which of them a vanishing sum is depends on the zeros that unseen keys add.
    for (int i = 0; i < task.head_dim; ++i) out[i] = total[VALUES_AT + i] * share + 0.0f;
}

// Attend with the arithmetic of a cache type.
void attend_f32(const Task& task, Scratch& scratch);
void attend_bf16(const Task& task, Scratch& scratch);
void attend_int8(const Task& task, Scratch& scratch);

}  // namespace lm::attention
