import { dictionary } from "./dictionary";

export const runs = dictionary({
  "runs.title": ["Runs", "运行"],
  "runs.about": [
    "Every run teaches an adapter over several rounds, from sums of what devices learnt.",
    "每次运行通过多个轮次，用各设备学习结果的总和来训练适配器。",
  ],
  "runs.new": ["New run", "新建运行"],
  "runs.open": ["Under way", "进行中"],
  "runs.run": ["Run", "运行"],
  "runs.task": ["Task", "任务"],
  "runs.state": ["State", "状态"],
  "runs.progress": ["Rounds", "轮次"],
  "runs.round-of": ["{round} of {rounds}", "{round} / {rounds}"],
  "runs.accuracy": ["Accuracy", "准确率"],
  "runs.epsilon": ["ε planned", "计划的 ε"],
  "runs.no-noise": ["no noise", "无噪声"],
  "runs.submitted": ["Submitted", "提交时间"],
  "runs.empty": ["No run has been submitted yet", "还没有提交过运行"],
  "runs.empty.about": [
    "Describe one in the form, where every choice is explained, or submit a job file:",
    "可以在表单中填写（每个选项都有说明），也可以提交任务文件：",
  ],
  "runs.empty.viewer": [
    "An operator or an administrator can submit one.",
    "操作员或管理员可以提交运行。",
  ],
  "task.text-classification": ["text classification", "文本分类"],
  "task.causal-lm": ["language model", "语言模型"],
  "run-state.preparing": ["preparing", "准备中"],
  "run-state.running": ["running", "运行中"],
  "run-state.finished": ["finished", "已完成"],
  "run-state.failed": ["failed", "失败"],
  "run-state.stopped": ["stopped", "已停止"],
});
