"""Operations on arrays that networks and controls share."""
