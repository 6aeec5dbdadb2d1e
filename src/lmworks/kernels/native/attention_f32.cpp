#include "attention_tile.h"

namespace lm::attention {

void attend_f32(const Task& task, Scratch& scratch) { TileAttention<Arithmetic<float>>(task, scratch).run(); }

}  // namespace lm::attention
