// Stands in until the real definitions are linked; removed with them.
#include "attention.h"
#include "linear.h"
#define WEAK __attribute__((weak))
namespace lm {
WEAK int64_t activation_bytes(int, int, int) { return 0; }
WEAK void convert_row(int, int, int, const float*, void*) {}
WEAK void linear_tile(const Linear&, const void*, int64_t, int, int, int, float*, int64_t) {}
WEAK void write_cache(const Cache&, const StepSequence&, const float*, const float*, int64_t, int, int) {}
WEAK void AttentionPlan::plan(const StepSequence*, int, int, int, int, int) {}
WEAK int64_t AttentionPlan::pieces() const { return 0; }
WEAK int64_t AttentionPlan::merges() const { return 0; }
WEAK void AttentionPlan::run_piece(int64_t, int, const Cache&, const ScoreRule&, const float*, int64_t, float*, int64_t) {}
WEAK void AttentionPlan::run_merge(int64_t, const ScoreRule&, float*, int64_t) {}
}
