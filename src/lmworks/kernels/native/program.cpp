// From instructions to the stages of a step.
#include "program.h"

#include <algorithm>
#include <chrono>
#include <iterator>

#include "program_run.h"
#include "rows.h"

namespace lm {

namespace {

bool is_product(const Instruction& i) { return i.op == OP_LINEAR || i.op == OP_LINEAR_ADD || i.op == OP_GATED; }

// Whether an instruction overwrites all of its output without having read it.
bool begins(const Instruction& i) {
    return i.op == OP_EMBED || i.op == OP_NORM || i.op == OP_LINEAR || i.op == OP_GATED || i.op == OP_ATTEND || i.op == OP_SELECT;
}

}  // namespace

bool Program::is_private_norm(int n) const {
    const int count = static_cast<int>(instructions_.size()), out = instructions_[n].out;
    if (instructions_[n].op != OP_NORM || n + 1 == count) return false;
    const Instruction& reader = instructions_[n + 1];
    if (!is_product(reader) || reader.in != out || reader.out == out) return false;
    for (int m = n + 2; m < count; ++m) {
        const Instruction& i = instructions_[m];
        if (i.in == out) return false;
        if (i.out == out) return begins(i);
    }
    return true;
}

char* Program::converted(const Stage& s, int thread) {
    if (!s.alone) return converted_.bytes();
    Own& own = own_[thread];
    if (own.stage == &s) return own.converted.bytes();
    own.stage = &s;
    const Linear& linear = s.instruction->linears[0];
    for (int m = 0; m < s.rows; ++m) {
        const float* x = row(s.instruction->in, m);
        if (const Instruction* i = s.norm) {
            normalize(i->norm, i->width, row(i->in, m), i->weight, i->bias, i->eps, own.normalized.floats());
            x = own.normalized.floats();
        }
        convert_row(linear.kind, linear.in, linear.group, x, own.converted.bytes() + m * s.converted_stride);
    }
    return own.converted.bytes();
}

// `norm`: whose stage was left out, null for none.
void Program::add_product(const Instruction& i, int rows, const Instruction* norm) {
    const Linear& first = i.linears[0];
    const int64_t stride = activation_bytes(first.kind, first.in, first.group);
    const int32_t* chosen = !step_.chosen ? nullptr : selecting_ ? selected_.data() : step_.chosen;
    const bool alone = rows <= FEW_ROWS && !chosen;
    if (alone) {
        for (Own& own : own_) own.converted.reserve(static_cast<size_t>(stride) * rows);
    } else {
        converted_.reserve(static_cast<size_t>(stride) * rows);
        add(i, stage::convert, rows, row_items(rows));
        stages_.back().converted_stride = stride;
    }
    if (chosen) {
        add(i, stage::shrink, rows, row_items(rows) * i.num_linears);
        stages_.back().chosen = chosen;
    }
    auto* work = i.op == OP_GATED ? stage::gated : i.op == OP_LINEAR_ADD ? stage::linear_add : stage::linear;
    add(i, work, rows, 0);
    Stage& stage = stages_.back();
    stage.chosen = chosen;
    stage.alone = alone;
    stage.norm = norm;
    stage.converted_stride = stride;
    int64_t tiles = 0;
    for (int n = 0; n < (i.op == OP_GATED ? 1 : i.num_linears); ++n)
        tiles += stage.tiles[n] = (i.linears[n].out + TILE - 1) / TILE;
    const int block = i.op == OP_GATED ? GATED_ROWS : ROW_BLOCK;
    items_.back() = tiles * ((rows + block - 1) / block);
}

AttentionPlan& Program::plan_for(const Instruction& i) {
    for (Planned& p : planned_)
        if (p.heads == i.heads && p.kv_heads == i.kv_heads && p.head_dim == i.head_dim && p.window == i.rule.window) {
            if (!p.fresh) p.plan->plan(step_.sequences, step_.num_sequences, p.heads, p.kv_heads, p.head_dim, p.window);
            p.fresh = true;
            return *p.plan;
        }
    planned_.push_back({i.heads, i.kv_heads, i.head_dim, i.rule.window, false, std::make_unique<AttentionPlan>()});
    return plan_for(i);
}

void Program::prepare() {
    for (Planned& p : planned_) p.fresh = false;
    stages_.clear();
    stages_.reserve(instructions_.size() * 3);  // stages are pointed at
    items_.clear();
    for (int n = 0; n < static_cast<int>(buffers_.size()); ++n)
        if (n != instructions_.back().out)  // the result is the caller's memory
            buffers_[n].reserve(sizeof(float) * widths_[n] * std::max(step_.rows, step_.num_selected));
    scratch_.resize(std::max<size_t>(scratch_.size(), pool_threads()));
    for (Buffer& scratch : scratch_) scratch.reserve(sizeof(float) * TILE * std::max(ROW_BLOCK, GATED_ROWS));
    hidden_.reserve(sizeof(float) * MATRICES * std::max(step_.rows, step_.num_selected) * (step_.chosen ? step_.max_rank : 0));
    own_.resize(std::max<size_t>(own_.size(), pool_threads()));
    for (Own& own : own_) {
        own.stage = nullptr;
        own.normalized.reserve(sizeof(float) * *std::max_element(widths_.begin(), widths_.end()));
    }
    selecting_ = false;
    int rows = step_.rows;
    const Instruction* norm = nullptr;  // left to the product that follows
    for (const Instruction& i : instructions_) {
        if (private_norm_[&i - instructions_.data()] && rows <= FEW_ROWS && !step_.chosen) {
            norm = &i;
            continue;
        }
        switch (i.op) {
            case OP_EMBED: add(i, stage::embed, rows, row_items(rows)); break;
            case OP_ADD_TABLE: add(i, stage::add_table, rows, row_items(rows)); break;
            case OP_NORM: add(i, stage::norm, rows, row_items(rows)); break;
            case OP_LINEAR: case OP_LINEAR_ADD: case OP_GATED: add_product(i, rows, norm); break;
            case OP_ROTATE_STORE: add(i, stage::rotate_store, rows, row_items(rows)); break;
            case OP_ATTEND: {
                AttentionPlan& plan = plan_for(i);
                add(i, stage::attend, rows, plan.pieces(), &plan);
                if (plan.merges()) add(i, stage::merge, rows, plan.merges(), &plan);
                break;
            }
            case OP_ADD: add(i, stage::add, rows, row_items(rows)); break;
            case OP_SELECT: rows = step_.num_selected; choose_selected(); add(i, stage::select, rows, row_items(rows)); break;
            case OP_SOFTCAP: add(i, stage::softcap, rows, row_items(rows)); break;
            case OP_SCALE: add(i, stage::scale, rows, row_items(rows)); break;
        }
        norm = nullptr;
        if (rows == 0) break;  // nobody asks for logits
    }
}

}  // namespace lm

extern "C" {

void* lm_program_new(const lm::Instruction* instructions, int count, const int32_t* buffer_widths, int num_buffers,
                     const lm::Cache* caches, int num_caches) {
    return new lm::Program(instructions, count, buffer_widths, num_buffers, caches, num_caches);
}

void lm_program_set_rotary(void* program, const lm::Rotary* rotaries, int count) {
    static_cast<lm::Program*>(program)->set_rotaries(rotaries, count);
}

void lm_program_run(void* program, const lm::Step* step) { static_cast<lm::Program*>(program)->run(*step); }

void lm_program_profile(void* program, const lm::Step* step, double* seconds) {
    static_cast<lm::Program*>(program)->profile(*step, seconds);
}

void lm_program_free(void* program) { delete static_cast<lm::Program*>(program); }

int lm_program_sizes(int32_t* sizes) {
    const int32_t values[] = {sizeof(lm::Instruction), sizeof(lm::Step), sizeof(lm::Cache), sizeof(lm::Rotary),
                              sizeof(lm::StepSequence), sizeof(lm::Linear), sizeof(lm::ScoreRule),
                              sizeof(lm::LowRank)};
    for (size_t i = 0; i < std::size(values); ++i) sizes[i] = values[i];
    return static_cast<int>(std::size(values));
}

}
