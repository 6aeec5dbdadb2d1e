#include "attention_tile.h"

namespace lm::attention {

void attend_bf16(const Task& task, Scratch& scratch) { TileAttention<Arithmetic<Bf16>>(task, scratch).run(); }

}  // namespace lm::attention
