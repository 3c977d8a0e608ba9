"""From a graph, a model, a criterion and data to `Scores`: one number a channel, low goes first.

In: `ChannelGraph`, module, criterion, batches and loss.  Out: `Scores`.  `Context` is what criteria see: gradients,
Hessian products, moments, activations, summed over processes; the model is left as it was.  May import `graph`,
`registry`, `errors`.
"""
