#include "fastsoftmax.h"
