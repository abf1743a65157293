#include "fastsoftmax.h"
#include "team.h"
