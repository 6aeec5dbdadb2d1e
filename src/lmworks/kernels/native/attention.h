// Attention over a cache of blocks. Knows no scheduler and no thread (only `lm_paged_attention` spreads over the pool).
//
// A query's result is the same bits whatever else is in the step and however its sequence was cut into chunks: keys are taken
// in spans and tiles that lie at absolute positions, and a single query goes through the same arithmetic as one among many.
#pragma once
#include <cstdint>

namespace lm {

enum CacheType : int { CACHE_F32 = 0, CACHE_BF16 = 1, CACHE_INT8 = 2 };

// One layer's keys and values: [2, kv_heads, blocks, block_size, width], contiguous. width is head_dim, for CACHE_INT8
// head_dim + 4: the numbers, then their float scale.
struct Cache {
    void* data;
    int type;
    int kv_heads, blocks, block_size, head_dim;
};

// What precedes the softmax.
struct ScoreRule {
    float scale;
    float softcap;        // cap * tanh(score / cap); 0: none
    int window;           // a query sees this many last positions, its own included; 0: all before it
    const float* sinks;   // [heads] scores of a key without value, or null
    const float* slopes;  // [heads] ALiBi: slope * (key position - query position) is added, or null
};

// One sequence's part of a step: new tokens at positions start ... start + length - 1 in rows row ... row + length - 1.
struct StepSequence {
    const int32_t* block_table;
    int32_t start, length, row;
};

// Store the keys and values of rows [first, last) of one sequence; key and value point at row 0 of the step, strides in floats.
void write_cache(const Cache& cache, const StepSequence& sequence, const float* key, const float* value, int64_t stride,
                 int first, int last);

// How the attention of one step is cut into pieces that may run in any order on any thread, then merged. Made once a step and
// used by every layer with the same heads and window.
class AttentionPlan {
public:
    // Lay out anew; keeps its memory from step to step.
    void plan(const StepSequence* sequences, int num_sequences, int heads, int kv_heads, int head_dim, int window);
    int64_t pieces() const;
    int64_t merges() const;
    // query and out: row 0 of [rows, heads * head_dim] floats, strides in floats.
    void run_piece(int64_t piece, int thread, const Cache& cache, const ScoreRule& rule, const float* query,
                   int64_t query_stride, float* out, int64_t out_stride);
    void run_merge(int64_t merge, const ScoreRule& rule, float* out, int64_t out_stride);
};

}  // namespace lm

extern "C" {
// Attention of all sequences of a step, on all threads of the pool. query and out: [rows, heads, head_dim] floats, strides of a
// row in floats. The step's own keys and values are in the cache already.
void lm_paged_attention(const lm::Cache* cache, const lm::ScoreRule* rule, const lm::StepSequence* sequences, int num_sequences,
                        const float* query, int64_t query_stride, int heads, float* out, int64_t out_stride);

void lm_write_cache(const lm::Cache* cache, const lm::StepSequence* sequences, int num_sequences, const float* key,
                    const float* value, int64_t stride);
}
