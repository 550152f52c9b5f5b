/**
 * Repairs that a power cut interrupts. The images to repair are states that an earlier cut left: with leaks, with the dirty bit,
 * with wrong copied flags. In every state the disk and its snapshots read as before, and the next repair ends what this one began.
 */

import { listSnapshots, openSnapshot } from '../../src/block/snapshots';
import { formatByName } from '../../src/formats/registry';
import { type RecordedOperation, RecordingStorage } from '../../src/storage/recording';
import { type Coverage, type CutOptions, eachCut } from '../helpers/power-cut';
import { contentOf } from '../helpers/snapshot-model';
import { type CrashFiles, load, openFiles, statesOf } from './images';
import { verdictOn } from './verdict';

/** The disk, then each snapshot. */
function everything(files: CrashFiles): Uint8Array[] {
  const { node } = openFiles(files);
  if (node.format !== 'qcow2' || files.written.length > 1) return [contentOf(node)];
  return [contentOf(node), ...listSnapshots(node).map(({ id }) => contentOf(openSnapshot(node, id)))];
}

function repair(files: CrashFiles, log?: RecordedOperation[]): void {
  const [top] = files.written;
  const module = formatByName(openFiles(files).node.format);
  module.check?.(module.readHeader(top), log === undefined ? top : new RecordingStorage(top, log), 'all');
}

/**
 * Repairs the image in `files` with the power failing at every moment; `files` hold the last of the states afterwards.
 * @returns what is wrong; how many states there were
 */
export function cutRepair(files: CrashFiles, options: CutOptions): { coverage: Coverage; problem?: string } {
  const starts = statesOf(files);
  const before = everything(files);
  const { wrong } = verdictOn(files.written[0]);
  const log: RecordedOperation[] = [];
  repair(files, log);
  let problem: string | undefined;
  const coverage = eachCut(starts, log, options, ({ states, given }) => {
    load(files, states);
    problem = differs(before, everything(files), 'cut');
    // Flags are set when the counts have gone down: until then more of them may be missing than before.
    const cut = verdictOn(files.written[0]);
    if (cut.wrong > wrong) problem ??= cut.words;
    if (problem === undefined) {
      repair(files);
      problem = differs(before, everything(files), 'repaired') ?? unclean(files);
    }
    if (problem !== undefined) problem = `repair cut after ${given} of ${log.length}: ${problem}`;
    return problem === undefined;
  });
  return problem === undefined ? { coverage } : { coverage, problem };
}

function differs(before: Uint8Array[], after: Uint8Array[], when: string): string | undefined {
  if (before.length !== after.length) return `${when}: ${after.length - 1} snapshots, ${before.length - 1} before`;
  const index = before.findIndex((bytes, at) => Buffer.compare(bytes, after[at]) !== 0);
  if (index < 0) return undefined;
  return `${when}: ${index === 0 ? 'the disk' : `snapshot ${index}`} reads otherwise`;
}

function unclean({ written: [top] }: CrashFiles): string | undefined {
  const { wrong, flags, leaks, words } = verdictOn(top);
  return wrong + flags + leaks === 0 ? undefined : `not clean after a repair: ${words}`;
}
