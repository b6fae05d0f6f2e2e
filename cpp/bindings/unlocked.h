// A call of the core without the interpreter's lock, which Python's signals can end.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include "../core/problem.h"

namespace rnnkern {

// Takes the interpreter's lock back. To a thread that asks for it after the interpreter has ended,
// CPython before 3.14 answers by unwinding the thread's stack, and what lies there would be freed
// without the lock: such a thread waits for the process to end, as it does from 3.14 on.
inline void take_lock(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
}

// Runs use(interrupt) without the interpreter's lock. The core asks `interrupt` now and then; it
// takes the lock and lets Python run its signal handlers, as the interpreter itself does between
// two instructions. What a handler raises (KeyboardInterrupt, on Ctrl-C) ends the call and is
// thrown on from here. In threads other than Python's main one no handler ever runs.
template <class Use>
void unlocked(const Use& use) {
  struct Lock {
    PyThreadState* state = PyEval_SaveThread();
    bool raised = false;
    static bool asked(void* context) {
      auto& lock = *static_cast<Lock*>(context);
      take_lock(lock.state);
      lock.raised = PyErr_CheckSignals() != 0;  // the error waits in the thread's state
      lock.state = PyEval_SaveThread();
      return lock.raised;
    }
  };
  Lock lock;
  use(Interrupt{Lock::asked, &lock});  // the core throws nothing
  take_lock(lock.state);
  if (lock.raised) throw pybind11::error_already_set();
}

}  // namespace rnnkern
