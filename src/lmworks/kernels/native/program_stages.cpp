// What the pieces of every kind of instruction do.
#include <algorithm>

#include "program_run.h"
#include "rows.h"

namespace lm {
namespace stage {

template <typename F>
inline void each_row(Stage& stage, int64_t item, F&& f) {
    const int64_t last = std::min<int64_t>((item + 1) * SMALL_ROWS, stage.rows);
    for (int64_t m = item * SMALL_ROWS; m < last; ++m) f(m);
}


void embed(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        const int64_t at = static_cast<int64_t>(s.program->step().tokens[m]) * i.width;
        float* out = s.program->row(i.out, m);
        if (i.table_type == CACHE_F32) {
            const float* from = static_cast<const float*>(i.table) + at;
            for (int c = 0; c < i.width; ++c) out[c] = from[c] * i.number;
        } else {
            const uint16_t* from = static_cast<const uint16_t*>(i.table) + at;
            for (int c = 0; c < i.width; ++c) out[c] = bf16_to_float(from[c]) * i.number;
        }
    });
}

void add_table(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        const int64_t place = i.count == 1 ? 0 : s.program->step().positions[m];
        const float* from = static_cast<const float*>(i.table) + place * i.width;
        float* out = s.program->row(i.out, m);
        for (int c = 0; c < i.width; ++c) out[c] += from[c];
    });
}

void norm(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        normalize(i.norm, i.width, s.program->row(i.in, m), i.weight, i.bias, i.eps, s.program->row(i.out, m));
    });
}

void convert(Stage& s, int64_t item, int thread) {
    const Linear& linear = s.instruction->linears[0];
    each_row(s, item, [&](int64_t m) {
        convert_row(linear.kind, linear.in, linear.group, s.program->row(s.instruction->in, m),
                    s.program->converted(s, thread) + m * s.converted_stride);
    });
}

// The first half of the updates that rows get: one matrix and some rows.
void shrink(Stage& s, int64_t item, int) {
    const int64_t blocks = row_items(s.rows);
    const int matrix = static_cast<int>(item / blocks);
    each_row(s, item % blocks, [&](int64_t m) {
        if (const LowRank* update = s.program->update(s, m, matrix))
            shrink_row(*update, s.instruction->linears[matrix].in, s.program->row(s.instruction->in, m), s.program->hidden(m, matrix));
    });
}

// The rows and columns of one piece of a product: blocks of rows are innermost, so that a tile's weights are read once.
struct Piece { int linear, tile, first, last; };

Piece piece_of(const Stage& s, int64_t item, int block) {
    const int64_t blocks = (s.rows + block - 1) / block;
    int64_t tile = item / blocks;
    int linear = 0;
    while (tile >= s.tiles[linear]) tile -= s.tiles[linear++];
    const int first = static_cast<int>(item % blocks) * block;
    return {linear, static_cast<int>(tile), first, std::min(first + block, s.rows)};
}

int columns_of(const Linear& linear, int tile) { return std::min(TILE, linear.out - tile * TILE); }

// The second half, for what `linear_tile` has just written.
void expand(Stage& s, const Piece& p, int matrix, float* out, int64_t stride) {
    if (!s.chosen) return;
    const Linear& l = s.instruction->linears[matrix];
    const int column = p.tile * TILE;
    for (int m = p.first; m < p.last; ++m)
        if (const LowRank* update = s.program->update(s, m, matrix))
            expand_row(*update, l.out, s.program->hidden(m, matrix), column, columns_of(l, p.tile), out + m * stride + column);
}

void linear(Stage& s, int64_t item, int thread) {
    const Instruction& i = *s.instruction;
    const Piece p = piece_of(s, item, ROW_BLOCK);
    const Linear& l = i.linears[p.linear];
    float* out = s.program->row(i.out, 0) + i.offsets[p.linear];
    const int64_t stride = s.program->width(i.out);
    linear_tile(l, s.program->converted(s, thread), s.converted_stride, p.first, p.last, p.tile, out, stride);
    expand(s, p, p.linear, out, stride);
    if (i.activation == ACT_NONE) return;
    for (int m = p.first; m < p.last; ++m) {
        float* at = out + m * stride + static_cast<int64_t>(p.tile) * TILE;
        activate(i.activation, columns_of(l, p.tile), at, at);
    }
}

void linear_add(Stage& s, int64_t item, int thread) {
    const Instruction& i = *s.instruction;
    const Piece p = piece_of(s, item, ROW_BLOCK);
    const Linear& l = i.linears[0];
    float* sums = s.program->scratch(thread);  // [ROW_BLOCK, TILE]
    const int64_t column = static_cast<int64_t>(p.tile) * TILE;
    linear_tile(l, s.program->converted(s, thread), s.converted_stride, p.first, p.last, p.tile, sums - column - p.first * TILE, TILE);
    expand(s, p, 0, sums - column - p.first * TILE, TILE);
    for (int m = p.first; m < p.last; ++m)
        add_scaled(columns_of(l, p.tile), sums + (m - p.first) * TILE, i.number, i.vector ? i.vector + column : nullptr,
                   s.program->row(i.out, m) + column);
}

void gated(Stage& s, int64_t item, int thread) {
    const Instruction& i = *s.instruction;
    const Piece p = piece_of(s, item, GATED_ROWS);
    const Linear &gate = i.linears[0], &up = i.linears[1];
    float* gates = s.program->scratch(thread);  // [GATED_ROWS, TILE]
    const int64_t column = static_cast<int64_t>(p.tile) * TILE;
    linear_tile(gate, s.program->converted(s, thread), s.converted_stride, p.first, p.last, p.tile, gates - column - p.first * TILE, TILE);
    expand(s, p, 0, gates - column - p.first * TILE, TILE);
    float* out = s.program->row(i.out, 0);
    const int64_t stride = s.program->width(i.out);
    linear_tile(up, s.program->converted(s, thread), s.converted_stride, p.first, p.last, p.tile, out, stride);
    expand(s, p, 1, out, stride);
    for (int m = p.first; m < p.last; ++m) {
        float* from = gates + (m - p.first) * TILE;
        float* to = out + m * stride + column;
        const int n = columns_of(up, p.tile);
        activate(i.activation, n, from, from);
        for (int c = 0; c < n; ++c) to[c] *= from[c];
    }
}

void rotate_store(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    Program& program = *s.program;
    const Rotary* rotary = program.rotary(i.rotary);
    const int d = i.head_dim, q = i.heads * d, k = i.kv_heads * d;
    const int64_t stride = program.width(i.in);
    const Cache& cache = program.cache(i.layer);
    const Step& step = program.step();
    const int first = static_cast<int>(item) * SMALL_ROWS, last = std::min(first + SMALL_ROWS, s.rows);
    for (int m = first; m < last; ++m) {
        float* x = program.row(i.in, m);
        if (i.query_norm && i.norm_all) {
            normalize(i.norm, q, x, i.query_norm, nullptr, i.eps, x);
            normalize(i.norm, k, x + q, i.key_norm, nullptr, i.eps, x + q);
        } else if (i.query_norm) {
            for (int h = 0; h < i.heads; ++h) normalize(i.norm, d, x + h * d, i.query_norm, nullptr, i.eps, x + h * d);
            for (int h = 0; h < i.kv_heads; ++h) normalize(i.norm, d, x + q + h * d, i.key_norm, nullptr, i.eps, x + q + h * d);
        }
        if (rotary)
            for (int h = 0; h < i.heads + i.kv_heads; ++h) rotate(*rotary, m, step.positions[m], x + h * d);
    }
    const float* keys = program.row(i.in, 0) + q;
    for (int n = 0; n < step.num_sequences; ++n) {
        const StepSequence& sequence = step.sequences[n];
        const int from = std::max(first, sequence.row), to = std::min(last, sequence.row + sequence.length);
        if (from < to) write_cache(cache, sequence, keys, keys + k, stride, from, to);
    }
}

void attend(Stage& s, int64_t item, int thread) {
    const Instruction& i = *s.instruction;
    Program& p = *s.program;
    s.plan->run_piece(item, thread, p.cache(i.layer), i.rule, p.row(i.in, 0), p.width(i.in), p.row(i.out, 0), p.width(i.out));
}

void merge(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    s.plan->run_merge(item, i.rule, s.program->row(i.out, 0), s.program->width(i.out));
}

void add(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        add_scaled(i.width, s.program->row(i.in, m), i.number, i.vector, s.program->row(i.out, m));
    });
}

void select(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        std::memcpy(s.program->row(i.out, m), s.program->row(i.in, s.program->step().selected[m]), sizeof(float) * i.width);
    });
}

void softcap(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        map(i.width, s.program->row(i.out, m), s.program->row(i.out, m), [&](float v) { return i.number * tanh_fast(v / i.number); });
    });
}

void scale(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        map(i.width, s.program->row(i.out, m), s.program->row(i.out, m), [&](float v) { return i.number * v; });
    });
}

}  // namespace stage
}  // namespace lm
