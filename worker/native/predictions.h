// The JSON of predictions, byte for byte as keyfold.export.predictions writes it.
//
// Owns the layout of a prediction and the text of a float32. Knows nothing of Python; the parts
// that every prediction of a bundle and partition shares come ready-made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace keyfold {

// What all predictions of one call share.
struct Form {
    std::string_view place;               // topic:partition
    std::vector<std::string_view> heads;  // empty, or one per output: the output object begins with
                                          // the head of the largest output
    std::vector<std::string_view> pieces; // around the outputs, one more than there are outputs
    std::string_view tail;                // the last members and the brace
};

// What one prediction is about.
struct Cause {
    int64_t offset, time_ms, steps;
    std::string_view key;  // plain(key)
    bool gap;              // the key's history may miss lost events
};

// Whether a key is a JSON text as it stands: ASCII with nothing that would be escaped.
bool plain(std::string_view key);
// The most bytes that a prediction of a form takes, its key's aside.
size_t most_bytes(const Form& form);
// Writes one prediction for the outputs y and returns its end.
char* write_prediction(char* out, const Form& form, const Cause& cause, const float* y);

// The most bytes that a float32 takes.
constexpr size_t kFloatBytes = 24;
// Writes a float32 in the fewest digits that read back as the same, laid out as orjson does; null
// where it is not finite. Returns the end.
char* write_float(char* out, float value);

}  // namespace keyfold
