#include "threads/grid.h"

namespace rnnkern {

Grid forced_grid{0, 1};

}  // namespace rnnkern
