import { FileStorage } from './file';
import { MemoryStorage } from './memory';
import type { Storage, StorageDescriptor } from './storage';

/** This thread's object over a storage that another thread opened. */
export function attachStorage(descriptor: StorageDescriptor): Storage {
  return descriptor.kind === 'file' ? new FileStorage(descriptor) : new MemoryStorage(descriptor);
}
