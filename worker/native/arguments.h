// Arguments of the module's functions: buffers that are held for the time of one call.
//
// Every array's type, shape and layout is checked here, so that the functions behind it may index
// without a thought. What does not suit ends in one line that names the function and the argument.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace keyfold {

// One argument's name, for errors.
struct Named {
    const char* function;
    const char* argument;
};

// A borrowed buffer; let go when the object ends.
class Held {
  public:
    Held() = default;
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() {
        if (held_) PyBuffer_Release(&view_);
    }

    // Bytes of any kind: bytes, bytearray, memoryview, a contiguous array.
    bool take_bytes(PyObject* object, Named named);
    // An aligned array of numpy's `type` ("int64"), `dimensions` deep; C-contiguous unless
    // `strided`, which is for one dimension only.
    bool take_array(PyObject* object, Named named, const char* type, int dimensions, bool writable,
                    bool strided = false);

    const Py_buffer& view() const { return view_; }
    const uint8_t* bytes() const { return static_cast<const uint8_t*>(view_.buf); }
    Py_ssize_t size(int dimension = 0) const { return view_.shape[dimension]; }
    template <class T> T* items() const { return static_cast<T*>(view_.buf); }

  private:
    Py_buffer view_{};
    bool held_ = false;
};

// A one-dimensional int32 array with any stride: a column of spans as it stands.
class Column {
  public:
    bool take(PyObject* object, Named named) {
        return held_.take_array(object, named, "int32", 1, false, true);
    }
    Py_ssize_t size() const { return held_.size(); }
    int32_t operator[](Py_ssize_t row) const {
        return *reinterpret_cast<const int32_t*>(held_.bytes() + row * held_.view().strides[0]);
    }

  private:
    Held held_;
};

// Whether a row of spans is null (length -1) or lies in the data as a whole.
bool within(const Held& data, int32_t at, int32_t length);
// Sets the error of a row that is not; returns null.
PyObject* refuse_row(const char* function, Py_ssize_t row);
// Sets an error and returns false, so that checks read as one expression.
bool refuse(PyObject* type, Named named, const char* expected);
// Says how many arguments a function takes when it was given another number.
bool counted(const char* function, Py_ssize_t given, Py_ssize_t expected);
bool read_int64(PyObject* object, Named named, int64_t& value);
// Whether it is a list or a tuple.
bool check_list(PyObject* object, Named named);
// The bytes in a tuple, which stay good as long as the tuple does.
bool read_texts(PyObject* tuple, Named named, std::vector<std::string_view>& texts);

}  // namespace keyfold
