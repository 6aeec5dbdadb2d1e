#include "attention_tile.h"

namespace lm::attention {

void attend_int8(const Task& task, Scratch& scratch) { TileAttention<Arithmetic<int8_t>>(task, scratch).run(); }

}  // namespace lm::attention
