"""The training job behind `rmsprop.fit` and `rmsprop train`, one step a file.

    table     columns in, whatever they came from: numbers, booleans and texts, checked and fingerprinted
    target    classification or regression, the classes, the held-out rows
    features  columns to the network's input: scikit-learn finds the numbers, a JSON file keeps them
    settings  every option, checked once
    network   the multilayer network and the four ways to start it
    ranks     the processes of the job, where torchrun has started several: rank 0 leads
    layers    how the steps of each layer went, and what that means in words
    loop      epochs, batches, loss and score; can stop after any batch and go on with the same bits
    files     writing that survives a kill, reading that notices a changed byte
    run       the run folder: config, checkpoint, metrics, model
    race      our step against torch.optim.RMSprop's, on the same gradients
    progress  a live bar on a terminal, a few plain lines elsewhere
    charts    the drawings of the report
    report    report.html, one page that needs nothing else
    job       all of these in order, started afresh or resumed

Everything heavy (torch, pandas, scikit-learn, matplotlib) is imported here and never by `import rmsprop`.
"""
