// Cross-entropy of rows of logits, and its gradient in their place. Knows no head. AVX-512 with BF16 only.
#ifdef __AVX512BF16__
#include <cmath>

#include "bf16_lanes.h"
#include "team.h"

extern "C" {

// losses [rows] = scales · (log Z - (1 - smoothing) · logit of the target - smoothing · mean logit + z_loss · log² Z), Z the
// row's sum of exponentials. With `gradient`, logits [rows, vocabulary] become the gradient of the sum of losses.
void lm_cross_entropy(
    uint16_t* logits, const int64_t* targets, const float* scales, int64_t rows, int64_t vocabulary, float z_loss, float smoothing,
    int gradient, float* losses) {
    lm::team_for(rows, [&](int64_t row) {
        uint16_t* x = logits + row * vocabulary;
        const __m512 lowest = _mm512_set1_ps(-INFINITY), to_base_2 = _mm512_set1_ps(lm::LOG2_E);
        __m512 highest = lowest, all = _mm512_setzero_ps();
        for (int64_t i = 0; i < vocabulary; i += 16) {
            const __mmask16 lanes = lm::lanes_of(vocabulary - i);
            const __m512 value = lm::load16(x + i, lanes);
            highest = _mm512_mask_max_ps(highest, lanes, highest, value);
            all = _mm512_add_ps(all, value);
        }
        const float most = _mm512_reduce_max_ps(highest) * lm::LOG2_E;
        __m512 sums = _mm512_setzero_ps();
        for (int64_t i = 0; i < vocabulary; i += 16) {
            const __mmask16 lanes = lm::lanes_of(vocabulary - i);
            const __m512 power = lm::exp2_16(_mm512_fmsub_ps(lm::load16(x + i, lanes), to_base_2, _mm512_set1_ps(most)));
            sums = _mm512_mask_add_ps(sums, lanes, sums, power);
        }
        const float log_sum_2 = most + std::log2(_mm512_reduce_add_ps(sums)), log_sum = log_sum_2 / lm::LOG2_E;
        const float scale = scales[row], target_logit = _mm_cvtss_f32(_mm512_castps512_ps128(lm::load16(x + targets[row], 1)));
        float expected = target_logit;
        if (smoothing != 0)
            expected = (1 - smoothing) * target_logit + smoothing * _mm512_reduce_add_ps(all) / static_cast<float>(vocabulary);
        losses[row] = scale * (log_sum - expected + z_loss * log_sum * log_sum);
        if (!gradient) return;
        const float factor = scale * (1 + 2 * z_loss * log_sum), spread = scale * smoothing / static_cast<float>(vocabulary);
        for (int64_t i = 0; i < vocabulary; i += 16) {
            const __mmask16 lanes = lm::lanes_of(vocabulary - i);
            const __m512 p = lm::exp2_16(_mm512_fmsub_ps(lm::load16(x + i, lanes), to_base_2, _mm512_set1_ps(log_sum_2)));
            lm::store16(x + i, _mm512_fmsub_ps(p, _mm512_set1_ps(factor), _mm512_set1_ps(spread)), lanes);
        }
        const float own = std::exp2(target_logit * lm::LOG2_E - log_sum_2) * factor - spread - scale * (1 - smoothing);
        lm::store16(x + targets[row], _mm512_set1_ps(own), 1);
    });
}

}
#endif
