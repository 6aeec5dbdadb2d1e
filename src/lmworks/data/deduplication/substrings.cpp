// Runs of a text's symbols (bytes or tokens) that occurred before, exactly, without a suffix array.
//
// A window is `least` symbols in a row within one document. Every window falls into the bucket of the least hash of the
// k-grams inside it. That number depends on the window's content alone, so equal windows share a bucket. Neighbours
// mostly share the least k-gram (Schleimer et al. 2003, winnowing): one entry of 16 bytes stands for the windows in a row
// that do, a quarter of a window's length on average. For windows of 100 bytes that is two thirds of a byte a byte, where
// a suffix array with its common prefixes takes eight. Windows of a bucket that holds two entries or more are looked up
// by a rolling hash, and every agreement of hashes is checked symbol by symbol: none is missed, none is invented.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr uint64_t BASE = 0x9E3779B97F4A7C15u;
constexpr int COUNT_BITS = 24;
constexpr uint64_t MOST = (1u << COUNT_BITS) - 1;
constexpr uint64_t TIED = uint64_t{1} << COUNT_BITS;
constexpr int64_t NONE = -1;
constexpr uint32_t EMPTY = ~0u;

uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

// Hash of `size` symbols in a row that moves along.
struct Rolling {
    uint64_t value = 0, leaving = 1;
    explicit Rolling(int64_t size) {
        for (int64_t i = 0; i < size; ++i) leaving *= BASE;
    }
    void add(uint64_t in) { value = value * BASE + in + 1; }
    void move(uint64_t out, uint64_t in) { value = value * BASE + in + 1 - (out + 1) * leaving; }
};

struct Entry {
    uint64_t bucket;
    uint64_t run;  // first window, whether the least k-gram came more than once, how many windows
    int64_t first() const { return static_cast<int64_t>(run >> (COUNT_BITS + 1)); }
    bool tied() const { return run & TIED; }
    int64_t count() const { return static_cast<int64_t>(run & MOST); }
    bool operator<(const Entry& other) const { return bucket != other.bucket ? bucket < other.bucket : run < other.run; }
};

template <class Symbol>
class Finder {
  public:
    Finder(const Symbol* text, int64_t least, uint8_t* repeated)
        : text_(text), least_(least), k_((least + 1) / 2), window_(least - k_ + 1), repeated_(repeated), hashes_(window_) {}

    // Enters the windows of one document.
    void document(int64_t begin, int64_t end) {
        if (end - begin < least_) return;
        Rolling rolling(k_);
        for (int64_t i = begin; i < begin + k_; ++i) rolling.add(text_[i]);
        uint64_t least = ~uint64_t{0}, bucket = 0;
        int64_t place = begin, entered = NONE;  // of the least hash, the last of equals; first window of the open entry
        bool tied = false, entry_tied = false;
        const int64_t last = end - k_;
        int64_t slot = 0;
        for (int64_t at = begin; at <= last; ++at) {
            if (at != begin) rolling.move(text_[at - 1], text_[at + k_ - 1]);
            const uint64_t hash = mix(rolling.value);
            hashes_[slot] = hash;
            slot = slot + 1 == window_ ? 0 : slot + 1;
            const int64_t first = at - window_ + 1;
            if (hash <= least) {
                tied = hash == least;
                least = hash, place = at;
            } else if (place < first) {
                least = *std::min_element(hashes_.begin(), hashes_.end());
                tied = std::count(hashes_.begin(), hashes_.end(), least) > 1;
                int64_t back = slot;
                place = at;
                for (;; --place) {
                    back = back == 0 ? window_ - 1 : back - 1;
                    if (hashes_[back] == least) break;
                }
            }
            if (first < begin) continue;
            if (entered == NONE || least != bucket || first - entered == static_cast<int64_t>(MOST)) {
                if (entered != NONE) enter(bucket, entered, first, entry_tied);
                bucket = least, entered = first, entry_tied = false;
            }
            entry_tied |= tied;
        }
        enter(bucket, entered, last - window_ + 2, entry_tied);
    }

    // Marks in `repeated` every window that equals one before it.
    void mark() {
        std::sort(entries_.begin(), entries_.end());
        for (size_t begin = 0, end; begin < entries_.size(); begin = end) {
            end = begin + 1;
            while (end < entries_.size() && entries_[end].bucket == entries_[begin].bucket) ++end;
            // Of one entry alone, equal windows hold its least k-gram at two places.
            if (end - begin > 1 || entries_[begin].tied()) bucket(begin, end);
        }
    }

  private:
    void enter(uint64_t bucket, int64_t first, int64_t end, bool tied) {
        const uint64_t place = static_cast<uint64_t>(first) << (COUNT_BITS + 1);
        entries_.push_back({bucket, place | (tied ? TIED : 0) | static_cast<uint64_t>(end - first)});
    }

    // Looks up all windows of entries [begin, end), which are in the order of the text.
    void bucket(size_t begin, size_t end) {
        table_.assign(64, EMPTY), kept_.clear();
        for (size_t e = begin; e < end; ++e) {
            Rolling rolling(0);
            rolling.leaving = leaving_;
            const int64_t first = entries_[e].first(), stop = first + entries_[e].count();
            for (int64_t i = first; i < first + least_; ++i) rolling.add(text_[i]);
            int64_t before = NONE;  // what the window before this one equals
            for (int64_t at = first; at < stop; ++at) {
                if (at != first) rolling.move(text_[at - 1], text_[at + least_ - 1]);
                before = source(at, mix(rolling.value), before);
                if (before != NONE) repeated_[at >> 3] |= static_cast<uint8_t>(1u << (at & 7));
            }
        }
    }

    // An earlier window that equals the one at `at`; where there is none it is remembered.
    int64_t source(int64_t at, uint64_t hash, int64_t before) {
        uint64_t slot = hash & (table_.size() - 1);
        for (; table_[slot] != EMPTY; slot = (slot + 1) & (table_.size() - 1)) {
            const Kept& other = kept_[table_[slot]];
            if (other.hash != static_cast<uint32_t>(hash >> 32)) continue;
            // Where the windows before both were equal only their last symbols are left to compare.
            const bool equal = before != NONE && other.at == before + 1
                                   ? text_[at + least_ - 1] == text_[other.at + least_ - 1]
                                   : !memcmp(text_ + at, text_ + other.at, static_cast<size_t>(least_) * sizeof(Symbol));
            if (equal) return other.at;
        }
        table_[slot] = static_cast<uint32_t>(kept_.size());
        kept_.push_back({at, static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(hash)});
        if (kept_.size() * 2 > table_.size()) grow();
        return NONE;
    }

    void grow() {
        table_.assign(table_.size() * 2, EMPTY);
        for (size_t i = 0; i < kept_.size(); ++i) {
            uint64_t slot = (uint64_t{kept_[i].hash} << 32 | kept_[i].low) & (table_.size() - 1);
            while (table_[slot] != EMPTY) slot = (slot + 1) & (table_.size() - 1);
            table_[slot] = static_cast<uint32_t>(i);
        }
    }

    struct Kept {
        int64_t at;
        uint32_t hash, low;
    };

    const Symbol* text_;
    const int64_t least_, k_, window_;  // symbols of a window and of a k-gram; k-grams in a window
    const uint64_t leaving_ = Rolling(least_).leaving;
    uint8_t* repeated_;
    std::vector<uint64_t> hashes_;  // of the last k-grams, in a ring
    std::vector<Entry> entries_;
    std::vector<uint32_t> table_;  // numbers in kept_
    std::vector<Kept> kept_;
};

template <class Symbol>
void repeats(const Symbol* text, const int64_t* ends, int64_t documents, int64_t least, uint8_t* repeated) {
    Finder<Symbol> finder(text, least, repeated);
    for (int64_t i = 0; i < documents; ++i) finder.document(i ? ends[i - 1] : 0, ends[i]);
    finder.mark();
}

}  // namespace

extern "C" {

// ends [documents]: symbols up to each document's end. width: bytes of a symbol, 1, 2 or 4.
// repeated [(symbols + 7) / 8]: zeros; of every window that equals one before it the first symbol's bit is set.
void lm_repeated_windows(const void* text, int64_t width, const int64_t* ends, int64_t documents, int64_t least,
                         uint8_t* repeated) {
    if (width == 1) repeats(static_cast<const uint8_t*>(text), ends, documents, least, repeated);
    if (width == 2) repeats(static_cast<const uint16_t*>(text), ends, documents, least, repeated);
    if (width == 4) repeats(static_cast<const uint32_t*>(text), ends, documents, least, repeated);
}

// What marked windows cover, as spans [begin, end) apart from each other, within documents. Where `spans` is null they
// are only counted. Returns their number.
int64_t lm_covered_spans(const uint8_t* repeated, const int64_t* ends, int64_t documents, int64_t least, int64_t* spans) {
    int64_t found = 0;
    for (int64_t i = 0; i < documents; ++i) {
        int64_t begin = NONE, end = NONE;
        for (int64_t at = i ? ends[i - 1] : 0; at + least <= ends[i]; ++at) {
            if (!repeated[at >> 3]) {
                at |= 7;  // nothing marked up to the next byte of marks
                continue;
            }
            if (!(repeated[at >> 3] >> (at & 7) & 1)) continue;
            if (begin == NONE || at > end) {
                if (begin != NONE && spans) spans[2 * found] = begin, spans[2 * found + 1] = end;
                found += begin != NONE;
                begin = at;
            }
            end = at + least;
        }
        if (begin != NONE && spans) spans[2 * found] = begin, spans[2 * found + 1] = end;
        found += begin != NONE;
    }
    return found;
}
}
