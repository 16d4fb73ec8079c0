"""Operations: what each is planned as and the compiled function that runs it."""
