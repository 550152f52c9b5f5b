/**
 * Changes of the snapshots of an image. In every state that the host may leave, the change is done or not done, every
 * snapshot in the list reads as it was, and so does the disk; and when somebody then writes all over the disk, no snapshot
 * changes. Leaks are allowed, and copied flags that a repair puts right: the dirty bit asks for it.
 */
import { formatByName } from '../../src/formats/registry';
import type { RecordedOperation } from '../../src/storage/recording';
import type { Cut, FileState } from '../helpers/power-cut';
import { patternBytes } from '../helpers/random';
import { contentOf, type Moment, problemOf, SnapshotModel } from '../helpers/snapshot-model';
import type { JudgeOptions } from './disk-judge';
import { type CrashFiles, type CrashImage, emptyFiles, load, makeFiles, openFiles, statesOf } from './images';
import { verdictOn } from './verdict';

export const CHANGES = ['take', 'delete', 'revert', 'rename'] as const;
export type Change = (typeof CHANGES)[number];

export interface SnapshotRun {
  image: CrashImage;
  files: CrashFiles;
  starts: FileState[];
  log: RecordedOperation[];
  before: Moment;
  after: Moment;
}

const momentOf = (model: SnapshotModel): Moment => ({
  live: model.live.slice(),
  snapshots: model.snapshots.map((snapshot) => ({ ...snapshot })),
});

/** An image with snapshots and shared clusters, and then one change, recorded. */
export function recordChange(image: CrashImage, change: Change, { random }: JudgeOptions): SnapshotRun {
  const files = makeFiles(image);
  const log: RecordedOperation[] = [];
  const { node } = openFiles(files, log);
  const { refcountBits = 16, version } = image.image;
  // A count of 2 bits ends at 3: the disk, one snapshot, and for a moment the disk that is reverted to it.
  const most = refcountBits === 2 ? 1 : 3;
  // Several compressed clusters share one cluster of the file, and each snapshot counts each of them: more than 15 are soon reached.
  const options = { cluster: image.cluster, most, grows: version !== 2, plain: refcountBits <= 4 };
  const model = new SnapshotModel(node, random, options);
  // Not so much that a check names only a part of what it finds.
  for (let step = 0; step < 14; step++) model.step();
  while (model.snapshots.length < Math.min(most, 2)) model.take();
  for (let step = 0; step < 4; step++) model.write();
  // Dirty tables and, half of the time, dropped clusters that wait for their release.
  model.node.flush();
  if (random.chance(0.5)) for (let step = 0; step < 2; step++) model.write();
  model.node.flush();
  if (change === 'take' && model.snapshots.length === most) model.delete();
  const starts = statesOf(files);
  log.length = 0;
  const before = momentOf(model);
  model[change]();
  return { image, files, starts, log: [...log], before, after: momentOf(model) };
}

const ZEROES = new Uint8Array(1000);

export class SnapshotJudge {
  states = 0;
  done = 0;
  reopened = 0;
  private readonly files: CrashFiles;

  constructor(
    private readonly run: SnapshotRun,
    private readonly options: JudgeOptions,
  ) {
    this.files = { ...emptyFiles(run.files), base: run.files.base };
  }

  /** @returns what is wrong */
  visit({ states, given, torn }: Cut): string | undefined {
    this.states++;
    const { files, run } = this;
    load(files, states);
    const unsound = this.unsound(torn ? undefined : given);
    if (unsound !== undefined) return unsound;
    const found = openFiles(files).node;
    const isDone = problemOf(found, run.after) === undefined;
    if (isDone) this.done++;
    else if (given === run.log.length) return `it has returned and is not done: ${problemOf(found, run.after)}`;
    const moment = isDone ? run.after : run.before;
    const problem = problemOf(found, moment) ?? this.askQemu(moment);
    if (problem !== undefined) return problem;
    return this.options.random.chance(this.options.reopen)
      ? (this.overwrite(moment) ?? this.repair(moment))
      : undefined;
  }

  private askQemu({ live, snapshots }: Moment): string | undefined {
    const { qemu, random, ask } = this.options;
    if (qemu === undefined || !random.chance(ask)) return undefined;
    const snapshot = snapshots.length === 0 ? undefined : random.pick(snapshots);
    return qemu.judge(this.run.image, this.files, live, { flagsMayBeWrong: true, snapshot });
  }

  /** Every part of the disk that holds something, now or in a snapshot, is written. No snapshot may change, whatever state the counts and flags are in. */
  private overwrite({ live, snapshots }: Moment): string | undefined {
    this.reopened++;
    const { node, finish } = openFiles(this.files, []);
    const written = live.slice();
    for (let offset = 0; offset < live.length; offset += ZEROES.length) {
      const end = Math.min(live.length, offset + ZEROES.length);
      const isZero = (bytes: Uint8Array) =>
        Buffer.compare(bytes.subarray(offset, end), ZEROES.subarray(0, end - offset)) === 0;
      if (isZero(live) && snapshots.every(({ bytes }) => isZero(bytes))) continue;
      written.set(patternBytes(offset, end - offset, 4711), offset);
      node.write(offset, written, offset, end - offset);
    }
    finish();
    const problem = problemOf(openFiles(this.files).node, { live: written, snapshots });
    return problem === undefined ? this.unsound() : `after the disk was overwritten, ${problem}`;
  }

  private repair({ snapshots }: Moment): string | undefined {
    const [top] = this.files.written;
    const module = formatByName('qcow2');
    module.check?.(module.readHeader(top), top, 'all');
    const { wrong, flags, leaks, words } = verdictOn(top);
    if (wrong + flags + leaks > 0) return `after a repair: ${words}`;
    const { node } = openFiles(this.files);
    return problemOf(node, { live: contentOf(node), snapshots });
  }

  /** No error but for flags, which are in other sectors than the counts; where an image has a dirty bit, it says so. */
  private unsound(given?: number): string | undefined {
    const [top] = this.files.written;
    const { wrong, flags, words } = verdictOn(top);
    if (wrong > 0) return words;
    const { dirty } = formatByName('qcow2').readHeader(top);
    if (given === this.run.log.length && (flags > 0 || dirty))
      return `it has returned, and the image is dirty: ${words}`;
    if (flags === 0 || dirty || this.run.image.image.version === 2) return undefined;
    return `${flags} wrong flags and no dirty bit: ${words}`;
  }
}
