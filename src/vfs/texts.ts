/** What the `.json` files say. The words are those of qemu-img and QMP; the formatting is qemu-img's: four spaces, one map entry a line. */
import * as assert from 'node:assert';
import { imageInfo, infoOf } from '../block/info';
import { layerMapEntries, mapEntries } from '../block/map-entries';
import type { BlockNode } from '../block/node';
import { descriptionOf, imageHeaderOf } from '../block/open';
import type { FormatDescription } from '../formats/format';
import type { SnapshotInfo } from './snapshot-source';
import type { TextPlan } from './tree';

const NANOSECONDS = 1e9;

export interface TextContent {
  /** The file's name, for messages and for /proc/PID/fd. */
  name: string;
  /** Made in no time and small, so that even stat(2) may make it to learn its size. */
  cheap: boolean;
  /** Changes with every request, not only when the disk is written. */
  live: boolean;
  /** The text, in pieces that are small. Made anew by every call. */
  chunks(): Iterable<string>;
}

/**
 * @param node the node that the plan names; absent for error.json
 * @param live for a snapshot: the node of its image
 */
export function textContent(text: TextPlan, node: BlockNode | undefined, live?: BlockNode): TextContent {
  if (text.of === 'error') {
    const { filename, code, message } = text;
    return { name: 'error.json', cheap: true, live: false, chunks: () => [indented({ filename, code, message })] };
  }
  assert.ok(node !== undefined, 'an opened image has a node');
  switch (text.of) {
    case 'info':
      return { name: 'info.json', cheap: true, live: false, chunks: () => [indented(imageInfo(node))] };
    case 'snapshot-info': {
      const { snapshot } = text;
      return {
        name: 'info.json',
        cheap: true,
        live: false,
        chunks: () => [indented(snapshotInfo(node, snapshot, live))],
      };
    }
    case 'stats':
      return { name: 'stats.json', cheap: true, live: true, chunks: () => [indented(deviceStatistics(node))] };
    case 'chain-map':
      return mapContent(() => mapEntries(node, { start: 0, length: node.size() }));
    case 'layer-map':
      return mapContent(() => layerMapEntries(node, { start: 0, length: node.size() }));
  }
}

/** What a format says of an image beside its header; kept, for with many snapshots it takes long to make. */
const specifics = new WeakMap<BlockNode, FormatDescription>();

function specificOf(live: BlockNode): FormatDescription {
  let known = specifics.get(live);
  if (known === undefined) {
    known = { specific: descriptionOf(live).specific };
    specifics.set(live, known);
  }
  return known;
}

/** As of an image, with this snapshot as the only one in the list. */
function snapshotInfo(node: BlockNode, snapshot: SnapshotInfo, live: BlockNode = node): object {
  const { icount, vmClockNsec, name, dateSec, dateNsec, id, vmStateSize } = snapshot;
  const vmClockSec = Math.floor(vmClockNsec / NANOSECONDS);
  const words = {
    ...(icount === undefined ? {} : { icount }),
    'vm-clock-nsec': vmClockNsec % NANOSECONDS,
    name,
    'date-sec': dateSec,
    'date-nsec': dateNsec,
    'vm-clock-sec': vmClockSec,
    id,
    'vm-state-size': vmStateSize,
  };
  return infoOf({
    path: node.path,
    header: imageHeaderOf(node),
    virtualSize: node.size(),
    actualSize: node.allocatedBytes(),
    description: { ...specificOf(live), snapshots: [words] },
  });
}

function mapContent(entries: () => Iterable<object>): TextContent {
  return { name: 'map.json', cheap: false, live: false, chunks: () => mapLines(entries()) };
}

function* mapLines(entries: Iterable<object>): Generator<string> {
  let separator = '[';
  for (const entry of entries) {
    yield separator + JSON.stringify(entry);
    separator = ',\n';
  }
  yield separator === '[' ? '[]\n' : ']\n';
}

function indented(value: object): string {
  return `${JSON.stringify(value, null, 4)}\n`;
}

/** BlockDeviceStats of QMP, as far as a node counts. */
function deviceStatistics(node: BlockNode): object {
  const counted = node.statistics();
  return {
    rd_bytes: counted.readBytes,
    wr_bytes: counted.writeBytes,
    unmap_bytes: counted.unmapBytes,
    rd_operations: counted.readOperations,
    wr_operations: counted.writeOperations,
    flush_operations: counted.flushOperations,
    unmap_operations: counted.unmapOperations,
    wr_highest_offset: counted.writeHighestOffset,
    failed_rd_operations: counted.failedReadOperations,
    failed_wr_operations: counted.failedWriteOperations,
    failed_flush_operations: counted.failedFlushOperations,
  };
}
