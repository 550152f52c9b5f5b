import type { FormatModule } from '../format';
import { createRaw } from './create';
import { RAW_CAPABILITIES, RawDriver } from './driver';

export const rawFormat: FormatModule = {
  name: 'raw',
  capabilities: RAW_CAPABILITIES,
  probe: () => false,
  readHeader: (storage) => ({ format: 'raw', virtualSize: storage.size(), clusterSize: 0, dirty: false }),
  initState: (header, storage, state) => {
    state.virtualSize = header.virtualSize;
    state.hostSize = storage.size();
  },
  attach: (_header, storage, state) => new RawDriver(storage, state),
  create: createRaw,
};
