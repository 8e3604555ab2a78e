-- A fold is the making of a state; what asks for one is an entry in the queue.
ALTER TABLE embedding_studio.folds RENAME TO queue;
ALTER INDEX embedding_studio.folds_pkey RENAME TO queue_pkey;
ALTER INDEX embedding_studio.folds_to_claim RENAME TO queue_to_claim;
