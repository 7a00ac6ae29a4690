// Python's objects and lock, held for as long as a scope lasts.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>

namespace keyfold {

struct Release {
    void operator()(PyObject* object) const { Py_XDECREF(object); }
};
// A reference of one's own.
using Ref = std::unique_ptr<PyObject, Release>;

// Lets other threads run while no object is touched, where that is worth it: a short call is over
// sooner than another thread would give the lock back.
class Unlocked {
  public:
    explicit Unlocked(bool worth) : state_(worth ? PyEval_SaveThread() : nullptr) {}
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;
    ~Unlocked() {
        if (state_) PyEval_RestoreThread(state_);
    }

  private:
    PyThreadState* state_;
};

}  // namespace keyfold
