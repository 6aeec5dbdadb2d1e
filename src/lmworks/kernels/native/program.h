// A decoder as a list of instructions over rows of floats, run in one go on the pool. Knows no Python and no request.
//
// A step is some hundreds of operations of a few microseconds each; called one by one from outside, the calls would cost more
// than the work. Rows are tokens; what one row becomes never depends on how many there are.
#pragma once
#include <cstdint>

#include "attention.h"
#include "linear.h"
#include "low_rank.h"

namespace lm {

enum Op : int32_t {
    OP_EMBED = 0,      // out = table[token] * number
    OP_ADD_TABLE,      // out += table[position] (count 1: the first row of the table for every token)
    OP_NORM,           // out = norm(in), `count` groups of `width` numbers
    OP_LINEAR,         // out = act(in . W^T + b), for up to 3 matrices side by side
    OP_LINEAR_ADD,     // out += number * vector * (in . W^T + b)
    OP_GATED,          // out = act(in . W0^T + b0) * (in . W1^T + b1)
    OP_ROTATE_STORE,   // queries and keys are normalized and turned in place, keys and values stored in the cache
    OP_ATTEND,         // out = attention of the queries in `in`
    OP_ADD,            // out += number * vector * in
    OP_SELECT,         // out = the selected rows of in; all that follows works on those alone
    OP_SOFTCAP,        // out = number * tanh(out / number)
    OP_SCALE,          // out *= number
    NUM_OPS,
};

enum Activation : int32_t { ACT_NONE = 0, ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_RELU, ACT_RELU2 };

enum NormKind : int32_t { NORM_RMS = 0, NORM_LAYER = 1 };

// What turns queries and keys.
struct Rotary {
    const float* cos;      // [positions or rows, size]
    const float* sin;
    int32_t size;          // coordinates that turn
    int32_t interleaved;   // pairs are neighbors, else half of `size` apart
    int32_t by_row;        // the tables have a row for every row of the step, else for every position
};

struct Instruction {
    int32_t op, in, out;  // numbers of buffers
    int32_t width, count;
    int32_t activation, norm;
    float number, eps;
    const void* table;     // EMBED, ADD_TABLE
    int32_t table_type;    // CacheType's numbering: 0 float, 1 bfloat16
    const float* weight;   // NORM: [width] or null
    const float* bias;
    const float* vector;   // [width] or null
    int32_t num_linears;
    Linear linears[3];
    int32_t offsets[3];    // columns of `out` at which each begins
    int32_t sites[3];      // their numbers in a set of updates
    // ROTATE_STORE and ATTEND; `in` holds queries, keys and values of a token side by side
    int32_t layer, heads, kv_heads, head_dim;
    ScoreRule rule;
    int32_t rotary;        // index, -1 for none
    const float* query_norm;  // [head_dim] or, with `norm_all`, [heads * head_dim]; null for none
    const float* key_norm;
    int32_t norm_all;
};

// What a step brings. Positions index rotary tables; `selected` rows get logits.
struct Step {
    int32_t rows, num_sequences, num_selected;
    const int32_t* tokens;
    const int32_t* positions;
    const StepSequence* sequences;
    const int32_t* selected;
    float* result;  // what the last instruction's buffer holds, [num_selected, its width]
    // Rows may get updates of low rank in products: `chosen` is each row's set of them, -1 for none; a set is an array by site.
    const int32_t* chosen;  // [rows], or null where no row gets any
    const LowRank* const* updates;
    int32_t max_rank;       // of all that occur
};

}  // namespace lm

extern "C" {
// A program over `num_buffers` buffers of so many floats a row. Instructions, caches and what they point to are copied as
// values; the memory behind the pointers is the caller's. The last instruction's `out` is the result.
void* lm_program_new(const lm::Instruction* instructions, int count, const int32_t* buffer_widths, int num_buffers,
                     const lm::Cache* caches, int num_caches);
void lm_program_set_rotary(void* program, const lm::Rotary* rotaries, int count);
void lm_program_run(void* program, const lm::Step* step);
// As lm_program_run, slower; adds the seconds that each kind of instruction took, and in place NUM_OPS those of converting
// activations.
void lm_program_profile(void* program, const lm::Step* step, double* seconds);
void lm_program_free(void* program);
// Sizes of the structures, so that the other side can check its own.
int lm_program_sizes(int32_t* sizes);
}
