import { alignUp, SECTOR_SIZE } from '../../units';
import { preallocationOption, SIZE_OPTION } from '../create-options';
import type { FormatModule } from '../format';
import { createRaw } from './create';
import { RAW_CAPABILITIES, RawDriver } from './driver';

export const rawFormat: FormatModule = {
  name: 'raw',
  capabilities: RAW_CAPABILITIES,
  probe: () => false,
  // A disk is a whole number of sectors: the last one of an odd file is filled up with zeroes.
  readHeader: (storage) => ({
    format: 'raw',
    virtualSize: alignUp(storage.size(), SECTOR_SIZE),
    clusterSize: 0,
    dirty: false,
  }),
  initState: (header, storage, state) => {
    state.virtualSize = header.virtualSize;
    state.hostSize = storage.size();
  },
  attach: (_header, storage, state) => new RawDriver(storage, state),
  create: createRaw,
  createOptions: [SIZE_OPTION, preallocationOption('off', 'falloc', 'full')],
};
