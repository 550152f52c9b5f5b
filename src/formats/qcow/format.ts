import { alignUp } from '../../units';
import { BACKING_OPTIONS, ENCRYPTION_OPTION, preallocationOption, SIZE_OPTION } from '../create-options';
import type { FormatModule, ImageHeader } from '../format';
import { initL1 } from '../two-level';
import { createQcow } from './create';
import { QCOW_CAPABILITIES, QcowDriver } from './driver';
import { isQcow, type QcowHeader, qcowL1Bytes, readQcowHeader } from './header';

/** qcow version 1. There is no check: the format has no counts that tables could contradict, and qemu-img has none either. */
export const qcowFormat: FormatModule = {
  name: 'qcow',
  capabilities: QCOW_CAPABILITIES,
  probe: isQcow,
  readHeader: readQcowHeader,

  initState(header, storage, state) {
    const qcow = asQcow(header);
    initL1(state, qcow.l1TableOffset, qcowL1Bytes(qcow, qcow.virtualSize));
    state.virtualSize = header.virtualSize;
    // Compressed streams end anywhere, and a last cluster that is cut is still that cluster: nothing is placed into its
    // rest. It belongs to the file as if it were there, so that growing the file never cuts what was written into it.
    state.fileEnd = alignUp(storage.size(), header.clusterSize);
    state.hostSize = state.fileEnd;
  },

  attach: (header, storage, state, cache, imageId) => new QcowDriver(asQcow(header), storage, state, cache, imageId),
  create: createQcow,
  createOptions: [SIZE_OPTION, ...BACKING_OPTIONS, ENCRYPTION_OPTION, preallocationOption('off', 'falloc', 'full')],
};

function asQcow(header: ImageHeader): QcowHeader {
  return header as QcowHeader;
}
