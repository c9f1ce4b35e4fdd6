"""Operations on tensors: a shape rule and a chunk rule each."""
