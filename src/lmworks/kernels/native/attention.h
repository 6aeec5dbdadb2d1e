// Attention over a cache of blocks. Knows no scheduler and no thread (only `lm_paged_attention` spreads over the pool).
//
// A query's result is the same bits whatever else is in the step and however its sequence was cut into chunks: keys are taken
// in spans and tiles that lie at absolute positions, and a single query goes through the same arithmetic as one among many.
#pragma once
#include <cstdint>
#include <vector>

namespace lm {

namespace attention {
struct Task;
}

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
    int32_t num_keys = 0;  // that all its tokens see, whatever their positions (a source's); 0: each sees those up to its own
};

// Store the keys and values of rows [first, last) of the step, all of one sequence; key and value point at row 0 of the step,
// strides in floats.
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

private:
    // Consecutive tokens of a sequence, some of the key heads, some of the tiles of keys.
    struct Piece {
        int sequence, token, tokens, kv_head, kv_heads, first_tile, last_tile;
        int64_t partial;  // of the first head's first tile; -1 where the piece has all tiles and writes the result
    };
    // A piece that was cut into ranges of tiles: where all of their partial results begin.
    struct Merge {
        int sequence, token, tokens, kv_head, tiles;
        int64_t partial;
    };

    int64_t cost(const StepSequence& sequence, int token, int tokens) const;
    void plan_tokens(int sequence, int token, int tokens, int64_t aim);
    attention::Task task(int sequence, int token, int tokens, int kv_head, const ScoreRule& rule, float* out,
                         int64_t out_stride) const;

    std::vector<StepSequence> sequences_;
    std::vector<Piece> pieces_;
    std::vector<Merge> merges_;
    std::vector<float> partials_;
    std::vector<std::vector<float>> scratch_;  // of each thread
    int64_t num_partial_floats_ = 0;
    int heads_ = 0, kv_heads_ = 0, head_dim_ = 0, window_ = 0;
    int rows_ = 0;  // of the largest piece
};

}  // namespace lm

extern "C" {
// Attention of all sequences of a step, on all threads of the pool. query and out: [rows, heads, head_dim] floats, strides of a
// row in floats. block_tables: [num_sequences, width]; sequences: [num_sequences, 4], the numbers of StepSequence.
void lm_paged_attention(const lm::Cache* cache, const lm::ScoreRule* rule, const int32_t* block_tables, int width,
                        const int32_t* sequences, int num_sequences, const float* query, int64_t query_stride, int heads,
                        float* out, int64_t out_stride);

// Store the keys and values of all sequences of a step: [rows, kv_heads, head_dim] floats, one stride for both.
void lm_write_cache(const lm::Cache* cache, const int32_t* block_tables, int width, const int32_t* sequences,
                    int num_sequences, const float* key, const float* value, int64_t stride);
}
