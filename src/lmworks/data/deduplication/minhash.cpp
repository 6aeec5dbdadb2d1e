// MinHash signatures of texts given as word hashes. The reference is `minhash_reference` in fingerprints.py.
//
// Thirty-two functions at a time keep their least values in registers while a text's n-grams, which stay in the nearest
// cache, pass by. The least upper half of a number is the upper half of the least number, so the shift waits to the end.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

typedef uint64_t Lanes __attribute__((vector_size(64)));
constexpr int LANES = 8, VECTORS = 4, AT_ONCE = LANES * VECTORS;
constexpr uint64_t BASE = 0x9E3779B97F4A7C15u;

uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

}  // namespace

// words: word hashes of all texts; starts, lengths [count]: where each text's lie; after them follow n - 1 zeros or more.
// odd, add [bands * rows]: the functions. signatures [bands, count, rows].
extern "C" void lm_minhash(const uint64_t* words, const int64_t* starts, const int64_t* lengths, int64_t count, int64_t n,
                           const uint64_t* odd, const uint64_t* add, int64_t bands, int64_t rows, uint32_t* signatures) {
    const int64_t hashes = bands * rows, blocks = (hashes + AT_ONCE - 1) / AT_ONCE;
    std::vector<uint64_t> odds(static_cast<size_t>(blocks * AT_ONCE), 1), adds(odds.size(), 0), grams;
    for (int64_t i = 0; i < hashes; ++i) odds[i] = odd[i], adds[i] = add[i];
    for (int64_t text = 0; text < count; ++text) {
        const uint64_t* from = words + starts[text];
        const int64_t size = lengths[text] < n ? 1 : lengths[text] - n + 1;
        grams.assign(static_cast<size_t>(size), 0);
        for (int64_t offset = 0; offset < n; ++offset)
            for (int64_t i = 0; i < size; ++i) grams[i] = grams[i] * BASE + from[i + offset];
        for (int64_t i = 0; i < size; ++i) grams[i] = mix(grams[i]);
        for (int64_t block = 0; block < blocks; ++block) {
            Lanes a[VECTORS], b[VECTORS], least[VECTORS];
            for (int v = 0; v < VECTORS; ++v) {
                __builtin_memcpy(&a[v], &odds[block * AT_ONCE + v * LANES], sizeof(Lanes));
                __builtin_memcpy(&b[v], &adds[block * AT_ONCE + v * LANES], sizeof(Lanes));
                least[v] = ~Lanes{};
            }
            for (int64_t i = 0; i < size; ++i) {
                const uint64_t gram = grams[i];
                for (int v = 0; v < VECTORS; ++v) {
                    const Lanes hashed = gram * a[v] + b[v];
                    least[v] = hashed < least[v] ? hashed : least[v];
                }
            }
            for (int i = 0; i < AT_ONCE && block * AT_ONCE + i < hashes; ++i) {
                const int64_t hash = block * AT_ONCE + i;
                const uint64_t value = least[i / LANES][i % LANES];
                signatures[(hash / rows * count + text) * rows + hash % rows] = static_cast<uint32_t>(value >> 32);
            }
        }
    }
}
