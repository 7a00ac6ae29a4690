#include "predictions.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

namespace keyfold {

namespace {

constexpr size_t kIntegerBytes = 20;
// Powers of ten from 1e-6 to below 1e13 are written without an exponent.
constexpr int kLeastPlain = -6;
constexpr int kMostPlain = 12;

char* write(char* out, std::string_view text) {
    std::memcpy(out, text.data(), text.size());
    return out + text.size();
}

char* write(char* out, int64_t value) { return std::to_chars(out, out + kIntegerBytes, value).ptr; }

char* write_zeros(char* out, int count) {
    std::memset(out, '0', static_cast<size_t>(count));
    return out + count;
}

// digits times 10^(exponent + 1 - count), without an exponent.
char* write_plain(char* out, std::string_view digits, int exponent) {
    const int count = static_cast<int>(digits.size());
    if (exponent < 0) {
        out = write(out, "0.");
        return write(write_zeros(out, -exponent - 1), digits);
    }
    const int whole = exponent + 1;
    if (count <= whole) return write(write_zeros(write(out, digits), whole - count), ".0");
    const auto split = static_cast<size_t>(whole);
    out = write(out, digits.substr(0, split));
    *out++ = '.';
    return write(out, digits.substr(split));
}

char* write_scientific(char* out, std::string_view digits, int exponent) {
    *out++ = digits[0];
    if (digits.size() > 1) {
        *out++ = '.';
        out = write(out, digits.substr(1));
    }
    *out++ = 'e';
    *out++ = exponent < 0 ? '-' : '+';
    return write(out, static_cast<int64_t>(std::abs(exponent)));
}

// As numpy's argmax has it: the first of the largest, and a NaN is larger than all.
size_t largest(const float* y, size_t count) {
    size_t best = 0;
    for (size_t i = 0; i < count; ++i) {
        if (std::isnan(y[i])) return i;
        if (y[i] > y[best]) best = i;
    }
    return best;
}

}  // namespace

char* write_float(char* out, float value) {
    if (!std::isfinite(value)) return write(out, "null");
    if (std::signbit(value)) *out++ = '-';
    // The digits come as d.ddde+xx; the point is closed up.
    char text[kFloatBytes];
    const char* end =
        std::to_chars(text, text + kFloatBytes, std::abs(value), std::chars_format::scientific).ptr;
    const char* power = end - 1;
    while (*power != 'e') --power;
    int exponent = 0;
    std::from_chars(power + 2, end, exponent);  // the sign stands before
    if (power[1] == '-') exponent = -exponent;
    char* first = text;
    if (power - text > 1) {
        text[1] = text[0];
        ++first;
    }
    const std::string_view digits(first, static_cast<size_t>(power - first));
    const bool plain = exponent >= kLeastPlain && exponent <= kMostPlain;
    return plain ? write_plain(out, digits, exponent) : write_scientific(out, digits, exponent);
}

bool plain(std::string_view key) {
    return std::all_of(key.begin(), key.end(), [](char one) {
        return one >= ' ' && one <= '~' && one != '"' && one != '\\';
    });
}

size_t most_bytes(const Form& form) {
    size_t size = 128 + 2 * form.place.size() + 4 * kIntegerBytes + form.tail.size();
    size_t head = 0;
    for (std::string_view text : form.heads) head = std::max(head, text.size());
    for (std::string_view text : form.pieces) size += text.size() + kFloatBytes;
    return size + head;
}

char* write_prediction(char* out, const Form& form, const Cause& cause, const float* y) {
    const size_t count = form.pieces.size() - 1;
    char offset[kIntegerBytes];
    const char* offset_end = write(offset, cause.offset);
    const std::string_view at(offset, static_cast<size_t>(offset_end - offset));
    out = write(out, "{\"id\":\"");
    out = write(out, form.place);
    *out++ = ':';
    out = write(write(out, at), ":0\",\"about\":\"");
    out = write(out, form.place);
    *out++ = ':';
    out = write(write(out, at), "\",\"key\":\"");
    out = write(write(out, cause.key), "\",\"time\":");
    out = write(write(out, cause.time_ms), ",\"output\":");
    if (!form.heads.empty()) out = write(out, form.heads[largest(y, count)]);
    out = write(out, form.pieces[0]);
    for (size_t i = 0; i < count; ++i) out = write(write_float(out, y[i]), form.pieces[i + 1]);
    out = write(write(out, ",\"steps\":"), cause.steps);
    out = write(out, cause.steps == 1 ? ",\"cold\":true" : ",\"cold\":false");
    out = write(out, form.tail);
    return cause.gap ? write(out - 1, ",\"gap\":true}") : out;
}

}  // namespace keyfold
